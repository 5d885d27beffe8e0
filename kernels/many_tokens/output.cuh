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

/* Of 16 tokens, a lane's part: rows g and g + 8, and two tokens of each of two times eight. */
struct Sixteen {
    float value[2][2][2]; /* [8 tokens][row][token] */

    /* scale: of the lane's two tokens of each eight. */
    __device__ __forceinline__ Sixteen(const Sum *sums, const float2 (&scale)[2], const TwoRows &rows)
    {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const Sum *two = sums + 4 * i + 2 * j;
                value[i][j][0] = scaled(two[0], scale[i].x, rows.weight_scale[j], rows.bias[j]);
                value[i][j][1] = scaled(two[1], scale[i].y, rows.weight_scale[j], rows.bias[j]);
            }
    }

    /* As 16 bits, a word of each of the four matrices of 8 rows and 8 tokens. */
    __device__ __forceinline__ void narrow_to(u32 *words) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++)
            words[i] = narrow(value[i / 2][i % 2][0], value[i / 2][i % 2][1]);
    }

    /* As 32 bits, from the lane's first row and token on. */
    __device__ __forceinline__ void write(const Arguments &it, u32 row, u32 token) const
    {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 at_row = row + i / 2 % 2 * 8, at_token = token + i / 4 * 8 + i % 2;
            if (at_row < it.rows && at_token < it.tokens)
                ((float *)it.out)[(u64)at_token * it.rows + at_row] = value[i / 4][i / 2 % 2][i % 2];
        }
    }
};

/* Where the outputs of a token begin, from a row on. */
__device__ __forceinline__ u16 *place_of_outputs(const Arguments &it, u32 row, u32 token)
{
    return (u16 *)it.out + (u64)token * it.rows + row;
}

/* Eight outputs of 16 bits of a token, from this row on, as far as there are rows. */
__device__ __forceinline__ void write_eight(const Arguments &it, u16 *to, const Four &eight, u32 row)
{
    if (it.rows % 8 == 0)
        *(Four *)to = eight;
    else
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (row + i < it.rows)
                to[i] = (u16)(eight.word[i / 2] >> (i % 2 * 16));
}

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
