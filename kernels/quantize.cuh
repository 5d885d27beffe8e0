/* Codes and scales of the activations, per token; for sparse weights the codes are lifted (windows.py). */

#ifndef QUANTIZERS
#define QUANTIZERS 512 /* threads of a block of `quantize` */
#endif

/* Columns of x, and pieces of 16 codes made of them, that belong together and to nothing else. */
#if SPARSE
#define GROUP_COLUMNS (16 * LENGTH)
#define GROUP_PIECES (4 * WINDOWS)
#else
#define GROUP_COLUMNS 64
#define GROUP_PIECES 4
#endif
#define WIDTH (SPARSE && LENGTH == 2 ? 2 : 4) /* columns of x in a word of codes */

struct Eight { float value[8]; };

/* Eight activations of a token from a column on, a multiple of 8. */
__device__ __forceinline__ Eight read_eight(const Arguments &it, u32 token, u32 column)
{
    Eight out;
    u64 from = (u64)token * it.columns + column;
    if (X != 2) {
        Four four = *(const Four *)((const u16 *)it.x + from);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u16 half = (u16)(four.word[i / 2] >> (i % 2 * 16));
            out.value[i] = X == 0 ? __uint_as_float((u32)half << 16) : half_float(half);
        }
    } else
#pragma unroll
        for (int i = 0; i < 8; i++)
            out.value[i] = read_number<X>(it.x, from + i);
    return out;
}

__device__ __forceinline__ float warp_max(float value)
{
#pragma unroll
    for (int step = 16; step; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
    return value;
}

/* The largest magnitude among the columns of a token that a thread of COUNT reads, many at once. */
template <u32 COUNT> __device__ __forceinline__ float absmax_of(const Arguments &it, u32 token)
{
    const u32 AT_ONCE = 5;
    float absmax = 0;
    for (u32 from = 8 * threadIdx.x; from < it.columns; from += AT_ONCE * 8 * COUNT) {
        Eight eight[AT_ONCE] = {};
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++)
            if (from + i * 8 * COUNT < it.columns)
                eight[i] = read_eight(it, token, from + i * 8 * COUNT);
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++)
#pragma unroll
            for (int j = 0; j < 8; j++)
                absmax = fmaxf(absmax, fabsf(eight[i].value[j]));
    }
    return warp_max(absmax);
}

__device__ __forceinline__ float scale_of(float absmax)
{
    return absmax == 0 ? 1.0f : fmaxf(__fdiv_rn(absmax, FLOAT ? 448.0f : 127.0f), 1.17549435e-38f);
}

/* Codes of two quotients, in two bytes: clamped, rounded to nearest even; -0 becomes 0. */
__device__ __forceinline__ u32 two_codes(float low, float high)
{
    const float most = FLOAT ? 448.0f : 127.0f;
    low = __fadd_rn(fminf(fmaxf(low, -most), most), 0.0f);
    high = __fadd_rn(fminf(fmaxf(high, -most), most), 0.0f);
#if !FLOAT
    return (__float2int_rn(low) & 0xff) | (__float2int_rn(high) & 0xff) << 8;
#elif __CUDA_ARCH__ >= 890
    u16 out;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(high), "f"(low));
    return out;
#else
#error "E4M3 needs compute capability 8.9"
#endif
}

/* Codes of eight activations, value / scale each. A product with 1 / scale is as good, unless it lies so near to the middle
   of two codes that the quotient may lie on the other side: it is off by less than 2**-22 of itself. */
__device__ __forceinline__ uint2 codes_of(const Eight &eight, float scale, float inverse)
{
    u32 code[8], doubt = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float near = __fmul_rn(eight.value[i], inverse);
        code[i] = two_codes(__fmul_rn(near, 1 - 1.0f / (1 << 20)), __fmul_rn(near, 1 + 1.0f / (1 << 20)));
        doubt |= (code[i] ^ code[i] >> 8) & 0xff;
    }
    if (doubt)
#pragma unroll
        for (int i = 0; i < 8; i++)
            code[i] = two_codes(__fdiv_rn(eight.value[i], scale), 0);
    u32 word[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; i++)
        word[i / 4] |= (code[i] & 0xff) << (i % 4 * 8);
    return make_uint2(word[0], word[1]);
}

/* Codes of columns [from, until) of a token, multiples of 8 or the end of the token, by COUNT threads: to[column - from]. */
template <u32 COUNT>
__device__ __forceinline__ void put_codes(const Arguments &it, u32 token, float scale, u8 *to, u32 from, u32 until)
{
    float inverse = __fdiv_rn(1.0f, scale);
    for (u32 column = from + 8 * threadIdx.x; column < until; column += 8 * COUNT)
        *(uint2 *)(to + (column - from)) = codes_of(read_eight(it, token, column), scale, inverse);
}

/* The first column of x of a word of a piece of codes: of a window, or of four columns as a lane multiplies them. */
__device__ __forceinline__ u32 column_of(u32 piece, u32 word)
{
#if SPARSE
    return column_of_window(piece * 4 + word);
#else
    return piece / 4 * 64 + word * 16 + piece % 4 * 4;
#endif
}

/* A piece of codes in the order of multiplication, from those of columns [from, until) of x. */
__device__ __forceinline__ Four lifted(const u8 *codes, u32 piece, u32 from, u32 until)
{
    Four four = {{0, 0, 0, 0}};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 column = column_of(piece, i);
        if (column < until)
            four.word[i] = *(const u16 *)(codes + (column - from));
        if (WIDTH == 4 && column + 2 < until)
            four.word[i] |= (u32) * (const u16 *)(codes + (column + 2 - from)) << 16;
    }
    return four;
}

/* Grid: tokens x shares of the codes. Every block of a token finds its scale, and makes its share of the codes. */
extern "C" __global__ void __launch_bounds__(QUANTIZERS, 1) quantize(const __grid_constant__ Arguments it)
{
    u32 thread = threadIdx.x, token = blockIdx.x, groups = (it.pieces + GROUP_PIECES - 1) / GROUP_PIECES;
    u32 first = groups * blockIdx.y / gridDim.y, last = groups * (blockIdx.y + 1) / gridDim.y;
    u32 from = first * GROUP_COLUMNS, until = min(last * GROUP_COLUMNS, it.columns);
    __shared__ float most[QUANTIZERS / 32];
    let_next_begin();
    wait_for_previous();
    float absmax = absmax_of<QUANTIZERS>(it, token);
    if (thread % 32 == 0)
        most[thread / 32] = absmax;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < QUANTIZERS / 32; i++)
        absmax = fmaxf(absmax, most[i]);
    float scale = scale_of(absmax);
    if (thread == 0 && blockIdx.y == 0)
        ((float *)it.scale)[token] = scale;
    put_codes<QUANTIZERS>(it, token, scale, shared, from, until);
    __syncthreads();
    for (u32 piece = first * GROUP_PIECES + thread; piece < min(last * GROUP_PIECES, it.pieces); piece += QUANTIZERS)
        *(Four *)((u8 *)it.codes + place_of_codes(it, piece, token)) = lifted(shared, piece, from, until);
}
