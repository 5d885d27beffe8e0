/* What a producer makes of its inputs: the values that producers/reference.py defines, rounded where it rounds.

   Settled when this is compiled (produce.py):
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

/* Eight elements of two inputs. */
__device__ __forceinline__ Raw element(const Raw &raw, const Raw &other)
{
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

/* Times the inverse of the root mean square, rounded, times the weight. */
__device__ __forceinline__ Raw normed(const Raw &raw, const Raw &weight, float inverse)
{
    Eight eight = values_of(raw);
#pragma unroll
    for (int i = 0; i < 8; i++)
        eight.value[i] = __fmul_rn(eight.value[i], inverse);
    return times(weight, rounded(eight));
}
