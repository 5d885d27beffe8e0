/* Codes of few tokens, interleaved as their product reads them (operand.py): of activations as they are, or of the inputs of
   a producer, a norm or a gated activation, which is computed in the same launch.

   A cluster of blocks has a token. Every thread holds some of its columns in registers, so inputs are read once; threads tell
   each other the mean square and the largest magnitude.

   Settled when this is compiled (produce.py):
     SPARSE, LENGTH, METADATA, TABLE_0 … TABLE_3, FLOAT, TILES, X   as in kernel.cu
     CLUSTER, QUANTIZERS, HELD                                      blocks of a token; threads of each; shares of a thread
     ELEMENT, NORM                                                  as in elements.cuh */

#include "device.cuh"

struct Arguments {
    const void *x, *other;      /* [tokens, columns] */
    const void *norm;           /* the norm's weight [columns] */
    void *total;                /* x + other [tokens, columns] */
    u8 *codes;                  /* [pieces][TOKENS][16] */
    float *scale;               /* [tokens] */
    u32 x_stride, other_stride; /* numbers from one token to the next */
    u32 columns, pieces;
    float eps;
};

/* Where a piece of 16 codes of a token lies. */
__device__ __forceinline__ u64 place_of_codes(const Arguments &, u32 piece, u32 token)
{
    return ((u64)piece * TOKENS + token) * 16;
}

#include "metadata.cuh"
#include "quantize.cuh"
#include "elements.cuh"

#define WARPS (QUANTIZERS / 32)
#define ALL_WARPS (CLUSTER * WARPS)

/* A number of every warp of the cluster, in each block. */
struct alignas(16) Numbers { float of[ALL_WARPS]; };

/* Tell all blocks this warp's number; all threads may read those of all warps then. */
__device__ __forceinline__ void tell(Numbers &numbers, float own)
{
    u32 lane = threadIdx.x % 32, place = blockIdx.x % CLUSTER * WARPS + threadIdx.x / 32;
#if CLUSTER > 1
    if (lane < CLUSTER)
        store_to(lane, address(numbers.of + place), __float_as_uint(own));
    leave_to_cluster();
    wait_for_cluster();
#else
    if (lane == 0)
        numbers.of[place] = own;
    __syncthreads();
#endif
}

/* Added up in the same order in every thread. */
__device__ __forceinline__ float sum_of_all(Numbers &numbers, float value)
{
#pragma unroll
    for (int step = 16; step; step /= 2)
        value += __shfl_xor_sync(~0u, value, step);
    tell(numbers, value);
    float out = 0;
#pragma unroll
    for (u32 i = 0; i < ALL_WARPS; i++)
        out += numbers.of[i];
    return out;
}

__device__ __forceinline__ float largest_of_all(Numbers &numbers, float value)
{
    tell(numbers, warp_max(value));
    float out = 0;
#pragma unroll
    for (u32 i = 0; i < ALL_WARPS; i++)
        out = fmaxf(out, numbers.of[i]);
    return out;
}

/* Normalize what the threads hold, and store the sum of both inputs, if that is what they hold. */
__device__ __forceinline__ void normalize(const Arguments &it, Share *held, const Share *weight, Numbers &squares, u32 token,
                                          u32 first)
{
    float own = 0;
#pragma unroll
    for (u32 i = 0; i < HELD; i++)
#pragma unroll
        for (u32 j = 0; j < SHARE_COLUMNS / 8; j++) {
            Eight eight = values_of(held[i].raw[j]);
#pragma unroll
            for (int k = 0; k < 8; k++)
                own = __fmaf_rn(eight.value[k], eight.value[k], own);
            u32 column = Share::column(first + i * QUANTIZERS, j);
            if (ELEMENT == SUM_OF_BOTH && column < it.columns)
                *(Raw *)((u8 *)it.total + ((u64)token * it.columns + column) * (X == 2 ? 4 : 2)) = held[i].raw[j];
        }
    float mean = __fdiv_rn(sum_of_all(squares, own), (float)it.columns);
    float inverse = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, it.eps)));
#pragma unroll
    for (u32 i = 0; i < HELD; i++)
#pragma unroll
        for (u32 j = 0; j < SHARE_COLUMNS / 8; j++)
            held[i].raw[j] = normed(held[i].raw[j], weight[i].raw[j], inverse);
}

extern "C" __global__ void IN_CLUSTERS __launch_bounds__(QUANTIZERS) quantize(const __grid_constant__ Arguments it)
{
    __shared__ Numbers squares, magnitudes;
    u32 token = blockIdx.x / CLUSTER, shares = (it.pieces + SHARE_PIECES - 1) / SHARE_PIECES;
    u32 first = blockIdx.x % CLUSTER * (HELD * QUANTIZERS) + threadIdx.x; /* of the thread's shares */
    let_next_begin();
#if CLUSTER > 1
    leave_to_cluster(); /* until others have begun, nothing can be stored to them */
#endif
    Share weight[NORM ? HELD : 1], held[HELD];
#pragma unroll
    for (u32 i = 0; i < (NORM ? HELD : 0); i++)
        weight[i].read(it, it.norm, 0, first + i * QUANTIZERS); /* no launch writes it: not waited for */
    wait_for_previous();
#pragma unroll
    for (u32 i = 0; i < HELD; i++)
        held[i].read(it, it.x, (u64)token * it.x_stride, first + i * QUANTIZERS);
    if (ELEMENT != SAME)
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            Share other;
            other.read(it, it.other, (u64)token * it.other_stride, first + i * QUANTIZERS);
#pragma unroll
            for (u32 j = 0; j < SHARE_COLUMNS / 8; j++)
                held[i].raw[j] = element(held[i].raw[j], other.raw[j]);
        }
#if CLUSTER > 1
    wait_for_cluster();
#endif
    if (NORM)
        normalize(it, held, weight, squares, token, first);
    float absmax = 0;
#pragma unroll
    for (u32 i = 0; i < HELD; i++)
        absmax = held[i].absmax(absmax);
    Divisor by(largest_of_all(magnitudes, absmax));
    if (first == 0)
        it.scale[token] = by.scale;
#pragma unroll
    for (u32 i = 0; i < HELD; i++)
        if (first + i * QUANTIZERS < shares)
            held[i].write(it, token, first + i * QUANTIZERS, by);
}
