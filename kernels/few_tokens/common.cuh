/* What the product of few tokens is made of. */

#include "device.cuh"

#define ROWS 64
#define SLAB_ROWS 16 /* of a warp */
#define CODES_UNIT (UNIT * TOKENS)
#define TILE_ROWS (SLABS ? SLABS * SLAB_ROWS : ROWS * ROW_GROUPS)

#if FLOAT
typedef float Sum;
__device__ __forceinline__ Sum as_sum(int bits) { return __int_as_float(bits); }
__device__ __forceinline__ int as_bits(Sum sum) { return __float_as_int(sum); }
#else
typedef int Sum;
__device__ __forceinline__ Sum as_sum(int bits) { return bits; }
__device__ __forceinline__ int as_bits(Sum sum) { return sum; }
#endif

struct alignas(16) Quad { Sum sum[4]; };

struct Arguments {
    const u8 *weight;          /* sparse: [tiles of 64 rows][units][4 warps][WARP_UNIT]; dense: [rows, columns] */
    const u8 *codes;           /* [16-column pieces of all units][TOKENS][16] */
    const float *scale;        /* [tokens] */
    const float *weight_scale; /* [rows] */
    const void *bias;          /* [rows] */
    void *out;                 /* [tokens, rows] */
    Sum *sums;                 /* [2][blocks][PART]: see Parts; ABSENT before and after */
    u32 rows, columns, tokens, units, tiles;
};

extern __shared__ __align__(128) u8 shared[];

#if SLABS
/* The slabs of this block: SLABS in the first blocks, one fewer in the others. A warp has one of them; warps beyond take
   part in barriers, in copies of codes and in wgmma. */
struct Slabs {
    u32 first, count;

    __device__ __forceinline__ Slabs(const Arguments &it)
    {
        u32 full = (it.rows + SLAB_ROWS - 1) / SLAB_ROWS - gridDim.x * (SLABS - 1); /* blocks with SLABS */
        first = blockIdx.x * (SLABS - 1) + min(blockIdx.x, full);
        count = SLABS - 1 + (blockIdx.x < full);
    }
};
#endif

__device__ __forceinline__ u16 narrow(float value)
{
    u16 out;
    if (X == 0)
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(value));
    else
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(value));
    return out;
}

/* 8 bytes. By way of the L1 cache: others beside them are copied next. */
__device__ __forceinline__ void copy_eight(u32 to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
}

/* 16 bytes, zeros if not `real`. */
__device__ __forceinline__ void copy(u32 to, const void *from, bool real = true)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}
