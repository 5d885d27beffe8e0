/* Codes of few tokens, interleaved as their product reads them (operand.py), made of the inputs of a producer: a norm or a
   gated activation in one launch with the quantization. Several blocks of a token compute the same mean and scale, and make
   a part of the codes each: there are more multiprocessors than tokens.

   Settled when this is compiled (interleaved.py):
     SPARSE, LENGTH, METADATA, TABLE_0 … TABLE_3, FLOAT, TILES, X   as in few_tokens/kernel.cu
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

__device__ __forceinline__ u64 place_of_codes(const Arguments &, u32 piece, u32 token)
{
    return ((u64)piece * TOKENS + token) * 16;
}

#include "metadata.cuh"
#include "quantize.cuh"
#include "elements.cuh"

extern "C" __global__ void __launch_bounds__(QUANTIZERS) produce(const __grid_constant__ Arguments it)
{
    quantize_token<Produced>(it);
}
