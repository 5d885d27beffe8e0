/* Numbers and shared memory. */

#include "device.cuh"

#define SLAB 32  /* rows of a warp */
#define UNIT 256 /* columns of a chunk */
#define WARPS (ROW_WARPS * COLUMN_WARPS)
#define THREADS (WARPS * 32)
#define ALL 0xffffffffu

struct alignas(8) Two { u32 word[2]; };

struct Arguments {
    const void *x;       /* [tokens, columns] */
    const float *scale;  /* [tokens], of codes */
    u8 *halves;          /* see activations.cuh */
    float *back;         /* [tokens] */
    const u8 *chunks;    /* see weights.cuh */
    const u32 *offsets;  /* [slabs * units + 1], in 16 bytes */
    const float *factor; /* [slabs * 32] a power of two for every row, which its scales are multiplied with */
    const void *bias;    /* [rows] */
    void *out;           /* [tokens, rows]; dequantize: [rows, columns] */
    u32 *sums;           /* [blocks][PART]: see sums.cuh; ABSENT before and after */
    u32 rows, columns, tokens, units, tiles, room;
};

extern __shared__ __align__(1024) u8 shared[];

/* ---- numbers */

/* Two floats as float16, the first in the low half. */
__device__ __forceinline__ u32 halves(float low, float high)
{
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

/* The same as bfloat16. */
__device__ __forceinline__ u32 bfloats(float low, float high)
{
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

/* Of two float16. */
__device__ __forceinline__ u32 multiply2(u32 a, u32 b)
{
    u32 out;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

__device__ __forceinline__ void write_number(void *to, u64 at, float value)
{
    if (OUT == 2) {
        ((float *)to)[at] = value;
        return;
    }
    u16 out;
    if (OUT == 0)
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(value));
    else
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(value));
    ((u16 *)to)[at] = out;
}

/* ---- shared memory */

__device__ __forceinline__ void copy(u32 to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

/* BYTES of 2, 4, 8 or 16 as words. Volatile: not to be read before they are there. */
template <int BYTES> __device__ __forceinline__ void load(u32 at, u32 *word)
{
    if (BYTES == 2) {
        u16 half;
        asm volatile("ld.shared.u16 %0, [%1];" : "=h"(half) : "r"(at));
        word[0] = half;
    } else if (BYTES == 4)
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word[0]) : "r"(at));
    else if (BYTES == 8)
        asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "r"(at));
    else
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3]) : "r"(at));
}
