/* Codes of many tokens: in rows, lifted, their columns in the order of multiplication.

   Settled when this is compiled (kernel.py): LENGTH, METADATA, TABLE_0 … TABLE_3, FLOAT, X as in few_tokens/kernel.cu;
   QUANTIZERS, HELD as in quantize.cuh. */

#include "common.cuh"
#include "metadata.cuh"
#include "quantize.cuh"

extern "C" __global__ void __launch_bounds__(QUANTIZERS) quantize(const __grid_constant__ Arguments it)
{
    quantize_token<Activations>(it);
}
