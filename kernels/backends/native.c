/* A sparse linear as one call: quantize and lift, multiply, scale. Three launches from C instead of three from Python
   save some fifteen microseconds. Nothing of CUDA is needed to build this: the entry points come as addresses. */

#include <stdint.h>

/* cuLaunchKernel: function, grid, block, shared bytes, stream, parameters, extra */
typedef int (*launch_function)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
                               void **, void **);
/* cusparseLtMatmul: handle, plan, alpha, A, B, beta, C, D, workspace, streams, their number */
typedef int (*matmul_function)(const void *, const void *, const void *, const void *, const void *, const void *,
                               const void *, void *, void *, void **, int32_t);

/* What is settled before; native.py has the same fields in the same order. */
typedef struct {
    launch_function launch;
    matmul_function matmul;
    void *handle, *plan, *lift, *dequant;
    uint64_t scale, sums, workspace; /* places in the scratch; the codes are at 0 */
    uint32_t rows, lift_threads, lift_shared, dequant_threads, dequant_shared, dequant_tokens, dequant_blocks;
} settled;

enum { LIFT_FAILED = 1000, MATMUL_FAILED = 2000, DEQUANT_FAILED = 3000 };

/* 0, or one of the above plus the status of what failed. Addresses on the device; `stream` a CUDA stream. */
int slidesparse_linear(const settled *call, int32_t tokens, void *x, char *scratch, void *operand, void *weight_scale,
                       void *bias, void *out, void *stream)
{
    static const float one = 1.0f, zero = 0.0f;
    char *scale = scratch + call->scale, *sums = scratch + call->sums;
    void *none = 0; /* Triton's own parameters, after ours */
    void *lift[] = {&x, &scratch, &scale, &tokens, &none, &none, &none, &none};
    void *dequant[] = {&sums, &scale, &weight_scale, &bias, &out, &tokens, &none, &none, &none, &none};
    unsigned blocks = (tokens + call->dequant_tokens - 1) / call->dequant_tokens;
    int status = call->launch(call->lift, call->rows, 1, 1, call->lift_threads, 1, 1, call->lift_shared, stream, lift, 0);
    if (status)
        return LIFT_FAILED + status;
    status = call->matmul(call->handle, call->plan, &one, operand, scratch, &zero, sums, sums,
                          scratch + call->workspace, &stream, 1);
    if (status)
        return MATMUL_FAILED + status;
    status = call->launch(call->dequant, blocks, call->dequant_blocks, 1, call->dequant_threads, 1, 1,
                          call->dequant_shared, stream, dequant, 0);
    return status ? DEQUANT_FAILED + status : 0;
}
