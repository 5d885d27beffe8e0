/* Codes of many tokens: in rows, lifted, their columns in the order of multiplication.

   Settled when this is compiled (kernel.py): LENGTH, METADATA, TABLE_0 … TABLE_3, FLOAT, X as in few_tokens/kernel.cu;
   QUANTIZERS, HELD as in quantize.cuh, 0 where a token has too many columns to be held. */

#include "common.cuh"
#include "metadata.cuh"
#include "quantize.cuh"

/* The largest of all threads of the block, in each. */
__device__ __forceinline__ float block_max(float value)
{
    __shared__ float most[QUANTIZERS / 32];
    value = warp_max(value);
    if (threadIdx.x % 32 == 0)
        most[threadIdx.x / 32] = value;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < QUANTIZERS / 32; i++)
        value = fmaxf(value, most[i]);
    return value;
}

/* A block for each token, which holds all of its columns if HELD, and else reads them twice. */
extern "C" __global__ void __launch_bounds__(QUANTIZERS) quantize(const __grid_constant__ Arguments it)
{
    u32 token = blockIdx.x, thread = threadIdx.x, shares = (it.pieces + SHARE_PIECES - 1) / SHARE_PIECES;
    u64 first = (u64)token * it.columns;
    float absmax = 0;
    let_next_begin();
    wait_for_previous();
#if HELD
    Share held[HELD];
#pragma unroll
    for (u32 i = 0; i < HELD; i++)
        held[i].read(it, it.x, first, i * QUANTIZERS + thread);
#pragma unroll
    for (u32 i = 0; i < HELD; i++)
        absmax = held[i].absmax(absmax);
#else
    const u32 AT_ONCE = 4;
    for (u32 from = 8 * thread; from < it.columns; from += AT_ONCE * 8 * QUANTIZERS) {
        Raw raw[AT_ONCE];
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++)
            raw[i] = read_eight(it, it.x, first, from + i * 8 * QUANTIZERS);
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++)
            absmax = absmax_of(raw[i], absmax);
    }
#endif
    Divisor by(block_max(absmax));
    if (thread == 0)
        ((float *)it.scale)[token] = by.scale;
#if HELD
#pragma unroll
    for (u32 i = 0; i < HELD; i++)
        if (i * QUANTIZERS + thread < shares)
            held[i].write(it, token, i * QUANTIZERS + thread, by);
#else
    for (u32 share = thread; share < shares; share += QUANTIZERS) {
        Share one;
        one.read(it, it.x, first, share);
        one.write(it, token, share, by);
    }
#endif
}
