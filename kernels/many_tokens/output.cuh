/* The output: (sum * scale) * weight_scale + bias, each operation rounded. */

__device__ __forceinline__ float scaled(Sum sum, float scale, float weight_scale, float bias)
{
    float out = __fmul_rn(__fmul_rn((float)sum, scale), weight_scale);
    return BIAS == 3 ? out : __fadd_rn(out, bias);
}

/* Two outputs of 16 bits in a word, the first one low. */
__device__ __forceinline__ u32 narrow(float low, float high)
{
    u32 out;
    if (X == 0)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

/* Scales and biases of rows g and g + 8 of a warp's 16. */
struct TwoRows {
    float weight_scale[2], bias[2];

    __device__ __forceinline__ TwoRows(const Arguments &it, u32 row)
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            bool real = row + 8 * i < it.rows;
            weight_scale[i] = real ? it.weight_scale[row + 8 * i] : 0.0f;
            bias[i] = BIAS != 3 && real ? read_number<BIAS>(it.bias, row + 8 * i) : 0.0f;
        }
    }
};

/* Outputs of 32 bits: rows `row` and the eighth after it, two tokens of each of two times eight. */
__device__ __forceinline__ void write_single(const Arguments &it, const float (&out)[2][2][2], u32 row, u32 token)
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 at_row = row + i / 2 % 2 * 8, at_token = token + i / 4 * 8 + i % 2;
        if (at_row < it.rows && at_token < it.tokens)
            ((float *)it.out)[(u64)at_token * it.rows + at_row] = out[i / 4][i / 2 % 2][i % 2];
    }
}

/* Eight outputs of 16 bits of a token, as far as there are rows. */
__device__ __forceinline__ void write_eight(const Arguments &it, const Four &eight, u32 row, u32 token)
{
    u16 *to = (u16 *)it.out + (u64)token * it.rows + row;
    if (it.rows % 8 == 0)
        *(Four *)to = eight;
    else
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (row + i < it.rows)
                to[i] = (u16)(eight.word[i / 2] >> (i % 2 * 16));
}

#define WARP_OUTPUTS 1024 /* bytes in which a warp turns its outputs */

/* Four matrices of 8 rows x 8 tokens, of 16 bits, a word of each from every lane: transposed to the addresses of their
   tokens, that of token lane % 8 of matrix lane / 8 from each lane. */
__device__ __forceinline__ void turn(u32 to, const u32 *words)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
#else
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 turned, row = __shfl_sync(~0u, to, i * 8 + threadIdx.x % 32 / 4);
        asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(words[i]));
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(row + threadIdx.x % 4 * 4), "r"(turned) : "memory");
    }
#endif
}

/* A warp's 16 rows of so many tokens, from a first row and token on. Outputs of 16 bits are turned in shared memory, 16
   tokens at a time, so that two lanes write the 16 rows of a token. */
template <u32 COUNT>
__device__ __forceinline__ void write_tile(const Arguments &it, const Sum *sums, u32 turned, u32 row, u32 token)
{
    u32 lane = threadIdx.x % 32, pair = lane % 4 * 2;
    TwoRows rows(it, row + lane / 4);
    /* A lane stores the address of 8 rows of a token: of matrix lane / 8, token lane % 8. Halves are swapped in every other
       four tokens, so that 8 lanes use all banks. */
    u32 stored = lane / 16 * 8 + lane % 8, store = turned + stored * 32 + (lane / 8 % 2 ^ stored / 4 % 2) * 16;
    u32 taken = lane / 2, take = turned + taken * 32 + (lane % 2 ^ taken / 4 % 2) * 16;
    u32 first = row + lane % 2 * 8;
#pragma unroll
    for (int i = 0; i < COUNT / 16; i++) {
        u32 words[4];
        float out[2][2][2]; /* [8 tokens][row][token] */
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float2 scale = *(const float2 *)(it.scale + token + 16 * i + 8 * j + pair);
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const Sum *two = sums + 4 * (2 * i + j) + 2 * k;
                out[j][k][0] = scaled(two[0], scale.x, rows.weight_scale[k], rows.bias[k]);
                out[j][k][1] = scaled(two[1], scale.y, rows.weight_scale[k], rows.bias[k]);
                words[2 * j + k] = narrow(out[j][k][0], out[j][k][1]);
            }
        }
        if (X == 2)
            write_single(it, out, row + lane / 4, token + 16 * i + pair);
        else {
            u32 buffer = i % 2 * 512, at_token = token + 16 * i + taken;
            __syncwarp(); /* lanes without outputs may be ahead */
            turn(store + buffer, words);
            __syncwarp();
            Four eight = load(take + buffer);
            if (at_token < it.tokens && first < it.rows)
                write_eight(it, eight, first, at_token);
        }
    }
}
