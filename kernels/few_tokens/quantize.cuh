/* Codes and scales of the activations, per token; for sparse weights the codes are lifted (windows.py). */

#define QUANTIZERS 512 /* threads of a block */

struct Eight { float value[8]; };

/* Piece of 8 activations of a token; zeros beyond the columns. */
__device__ __forceinline__ Eight read_piece(const Arguments &it, u32 token, u32 piece)
{
    Eight out;
    u64 from = (u64)token * it.columns + (u64)piece * 8;
    bool real = piece * 8 < it.columns;
    if (X != 2) {
        Four four = real ? *(const Four *)((const u16 *)it.x + from) : Four{{0, 0, 0, 0}};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u16 half = (u16)(four.word[i / 2] >> (i % 2 * 16));
            out.value[i] = X == 0 ? __uint_as_float((u32)half << 16) : half_float(half);
        }
    } else
#pragma unroll
        for (int i = 0; i < 8; i++)
            out.value[i] = real ? read_number<X>(it.x, from + i) : 0.0f;
    return out;
}

__device__ __forceinline__ float warp_max(float value)
{
#pragma unroll
    for (int step = 16; step; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
    return value;
}

__device__ __forceinline__ float scale_of(float absmax)
{
    return absmax == 0 ? 1.0f : fmaxf(__fdiv_rn(absmax, FLOAT ? 448.0f : 127.0f), 1.17549435e-38f);
}

/* Rounded to nearest even; -0 becomes 0. */
__device__ __forceinline__ u32 code(float value, float scale)
{
    const float most = FLOAT ? 448.0f : 127.0f;
    float scaled = __fadd_rn(fminf(fmaxf(__fdiv_rn(value, scale), -most), most), 0.0f);
#if FLOAT
#if __CUDA_ARCH__ >= 890
    u16 out;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(0.0f), "f"(scaled));
    return out & 0xff;
#else
#error "E4M3 needs compute capability 8.9"
#endif
#else
    return __float2int_rn(scaled) & 0xff;
#endif
}


/* The first column of x of a word of codes: of a window, or of four columns as a lane multiplies them. */
#define WIDTH (SPARSE && LENGTH == 2 ? 2 : 4)

__device__ __forceinline__ u32 column_of(u32 piece, u32 word)
{
#if SPARSE
    const u32 windows = LENGTH == 2 ? 1 : LENGTH / 2 - 1;
    u32 window = piece * 4 + word;
    return window / windows * LENGTH + window % windows * 2;
#else
    return piece / 4 * 64 + word * 16 + piece % 4 * 4;
#endif
}

/* Grid: tokens x shares of the codes. Every block of a token finds its scale and codes, and writes its share. */
extern "C" __global__ void __launch_bounds__(QUANTIZERS, 1) quantize(const __grid_constant__ Arguments it)
{
    u32 thread = threadIdx.x, token = blockIdx.x;
    __shared__ float most[QUANTIZERS / 32];
    let_next_begin();
    wait_for_previous();
    Eight held[HELD];
    float absmax = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        held[i] = read_piece(it, token, i * QUANTIZERS + thread);
#pragma unroll
    for (int i = 0; i < HELD; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
            absmax = fmaxf(absmax, fabsf(held[i].value[j]));
    absmax = warp_max(absmax);
    if (thread % 32 == 0)
        most[thread / 32] = absmax;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < QUANTIZERS / 32; i++)
        absmax = fmaxf(absmax, most[i]);
    float scale = scale_of(absmax);
    if (thread == 0 && blockIdx.y == 0)
        ((float *)it.scale)[token] = scale;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        u32 piece = i * QUANTIZERS + thread, word[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < 8; j++)
            word[j / 4] |= code(held[i].value[j], scale) << (j % 4 * 8);
        if (piece * 8 < it.columns) {
            *(u32 *)(shared + piece * 8) = word[0];
            *(u32 *)(shared + piece * 8 + 4) = word[1];
        }
    }
    __syncthreads();
    u8 *codes = (u8 *)it.codes;
    for (u32 piece = blockIdx.y * QUANTIZERS + thread; piece < it.pieces; piece += gridDim.y * QUANTIZERS) {
        Four four = {{0, 0, 0, 0}};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 column = column_of(piece, i);
            if (column < it.columns)
                four.word[i] = *(u16 *)(shared + column);
            if (WIDTH == 4 && column + 2 < it.columns)
                four.word[i] |= (u32) * (u16 *)(shared + column + 2) << 16;
        }
        *(Four *)(codes + ((u64)piece * TOKENS + token) * 16) = four;
    }
}
