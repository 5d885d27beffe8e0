/* What a producer makes of its inputs: the values that producers/reference.py defines, rounded where it rounds.

   Settled when this is compiled (interleaved.py):
     ELEMENT   0: x; 1: x + other; 2: silu(x) * other; 3: relu(x)**2 * other
     NORM      the RMSNorm of it, with its weight */

#define SAME 0
#define SUM_OF_BOTH 1
#define SILU 2

/* x / (1 + 2**(-log2(e) x)), in the instructions of producers/elements.py. */
__device__ __forceinline__ float silu(float x)
{
    float out;
    asm("{.reg .f32 t; mul.rn.f32 t, %1, 0fBFB8AA3B; ex2.approx.ftz.f32 t, t; add.rn.f32 t, t, 0f3F800000; "
        "rcp.approx.ftz.f32 t, t; mul.rn.f32 %0, %1, t;}" : "=f"(out) : "f"(x));
    return out;
}

/* The nearest numbers of the activations' kind, as they lie. */
__device__ __forceinline__ Raw rounded(const Eight &eight)
{
    Raw out;
#pragma unroll
    for (int i = 0; i < 8; i += X == 2 ? 1 : 2) {
        u32 &word = out.four[X == 2 ? i / 4 : 0].word[X == 2 ? i % 4 : i / 2];
        if (X == 0)
            asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(eight.value[i + 1]), "f"(eight.value[i]));
        else if (X == 1)
            asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(eight.value[i + 1]), "f"(eight.value[i]));
        else
            word = __float_as_uint(eight.value[i]);
    }
    return out;
}

/* The products of eight pairs, rounded. */
__device__ __forceinline__ Raw times(const Raw &left, const Raw &right)
{
    Eight out = values_of(left), other = values_of(right);
#pragma unroll
    for (int i = 0; i < 8; i++)
        out.value[i] = __fmul_rn(out.value[i], other.value[i]);
    return rounded(out);
}

/* The sum of all threads of the block, in each: the same in every block. */
__device__ __forceinline__ float block_sum(float value)
{
    __shared__ float parts[QUANTIZERS / 32];
#pragma unroll
    for (int step = 16; step; step /= 2)
        value += __shfl_xor_sync(~0u, value, step);
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0;
#pragma unroll
    for (int i = 0; i < QUANTIZERS / 32; i++)
        value += parts[i];
    return value;
}

/* Every block of a token finds the mean of its squares, and writes its part of the sum of both inputs. */
struct Produced {
    const Arguments &it;
    u64 first, first_other; /* of the token in its inputs */
    float inverse;          /* of the root of the mean square */

    __device__ __forceinline__ Produced(const Arguments &it, u32 token)
        : it(it), first((u64)token * it.x_stride), first_other((u64)token * it.other_stride), inverse(1)
    {
        if (!NORM)
            return;
        float squares = 0;
        u32 turn = 0;
        for (u32 column = 8 * threadIdx.x; column < it.columns; column += 8 * QUANTIZERS, turn++) {
            Raw raw = element(column);
            Eight eight = values_of(raw);
#pragma unroll
            for (int i = 0; i < 8; i++)
                squares = __fmaf_rn(eight.value[i], eight.value[i], squares);
            if (ELEMENT == SUM_OF_BOTH && turn % gridDim.y == blockIdx.y)
                *(Raw *)((u8 *)it.total + ((u64)token * it.columns + column) * (X == 2 ? 4 : 2)) = raw;
        }
        float mean = __fdiv_rn(block_sum(squares), (float)it.columns);
        inverse = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, it.eps)));
    }

    __device__ __forceinline__ Raw element(u32 column) const
    {
        Raw raw = read_eight(it, it.x, first, column);
        if (ELEMENT == SAME)
            return raw;
        Raw other = read_eight(it, it.other, first_other, column);
        Eight eight = values_of(raw), added = values_of(other);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float value = eight.value[i], positive = fmaxf(value, 0.0f);
            eight.value[i] = ELEMENT == SUM_OF_BOTH ? __fadd_rn(value, added.value[i])
                             : ELEMENT == SILU      ? silu(value)
                                                    : __fmul_rn(positive, positive);
        }
        return ELEMENT == SUM_OF_BOTH ? rounded(eight) : times(rounded(eight), other);
    }

    __device__ __forceinline__ Raw eight(u32 column) const
    {
        Raw raw = element(column);
        if (!NORM)
            return raw;
        Eight normed = values_of(raw);
#pragma unroll
        for (int i = 0; i < 8; i++)
            normed.value[i] = __fmul_rn(normed.value[i], inverse);
        return times(read_eight(it, it.norm, 0, column), rounded(normed));
    }
};
