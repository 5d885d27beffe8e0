/* Codes and scales of the activations, per token; for sparse weights the codes are lifted (windows.py). A thread makes
   codes of some columns in registers, and of them all windows: each column is quantized once.

   Settled when this is compiled: QUANTIZERS, the threads of a block; HELD, the shares of columns that a thread holds. */

/* Columns of x, and pieces of 16 codes made of them, that are a thread's: of four blocks; or the lower or upper halves of
   four times 16 columns. */
#if SPARSE
#define SHARE_COLUMNS (4 * LENGTH)
#define SHARE_PIECES WINDOWS
#else
#define SHARE_COLUMNS 32
#define SHARE_PIECES 2
#endif
#define TOO_SMALL 5.42101086e-20f /* 2**-64: scales below are worked on times 2**64, as remainders would be subnormal */

struct Eight { float value[8]; };

/* Eight activations as they lie. */
struct Raw { Four four[X == 2 ? 2 : 1]; };

/* Of a token that begins at number `first` of x, from a column on, a multiple of 8; zeros beyond its end. */
__device__ __forceinline__ Raw read_eight(const Arguments &it, const void *x, u64 first, u32 column)
{
    Raw out = {};
    if (column < it.columns)
        out = *(const Raw *)((const u8 *)x + (first + column) * (X == 2 ? 4 : 2));
    return out;
}

__device__ __forceinline__ Eight values_of(const Raw &raw)
{
    Eight out;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u16 half = (u16)(raw.four[0].word[i / 2 % 4] >> (i % 2 * 16));
        u32 whole = raw.four[X == 2 ? i / 4 : 0].word[i % 4];
        out.value[i] = X == 2 ? __uint_as_float(whole) : X == 0 ? __uint_as_float((u32)half << 16) : half_float(half);
    }
    return out;
}

/* Of eight activations, and of what came before. */
__device__ __forceinline__ float absmax_of(const Raw &raw, float absmax)
{
    Eight eight = values_of(raw);
#pragma unroll
    for (int i = 0; i < 8; i++)
        absmax = fmaxf(absmax, fabsf(eight.value[i]));
    return absmax;
}

__device__ __forceinline__ float warp_max(float value)
{
#pragma unroll
    for (int step = 16; step; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
    return value;
}

/* What a token is divided by: times `factor`, and the reciprocal of that. */
struct Divisor {
    float scale, factor, scaled, reciprocal;

    __device__ __forceinline__ Divisor(float absmax)
    {
        scale = absmax == 0 ? 1.0f : fmaxf(__fdiv_rn(absmax, FLOAT ? 448.0f : 127.0f), 1.17549435e-38f);
        factor = scale < TOO_SMALL ? 1.0f / TOO_SMALL : 1.0f;
        scaled = __fmul_rn(scale, factor);
        reciprocal = __fdiv_rn(1.0f, scaled);
    }

    /* value / scale, correctly rounded (Markstein): one step is enough for numbers of 16 bits, two for float32, as
       kernels/quantize/test_quantize.py finds. */
    __device__ __forceinline__ float quotient(float value) const
    {
        value = __fmul_rn(value, factor);
        float out = __fmul_rn(value, reciprocal);
#pragma unroll
        for (int step = 0; step < (X == 2 ? 2 : 1); step++)
            out = __fmaf_rn(__fmaf_rn(out, -scaled, value), reciprocal, out);
        return out;
    }
};

__device__ __forceinline__ u32 bytes_of(u32 low, u32 high, u32 selectors)
{
    u32 out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selectors));
    return out;
}

/* Codes of two quotients in the low bytes of a word; what is above them is anything. */
__device__ __forceinline__ u32 two_codes(float low, float high)
{
#if !FLOAT
    /* Added to a number below 2**22, it leaves the nearest integer, ties to even, in the low bits. */
    const float MAGIC = 12582912.0f;
    return bytes_of(__float_as_uint(__fadd_rn(low, MAGIC)), __float_as_uint(__fadd_rn(high, MAGIC)), 0x40);
#elif __CUDA_ARCH__ >= 890
    u16 out;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(high), "f"(low));
    return out;
#else
#error "E4M3 needs compute capability 8.9"
#endif
}

/* A word of one of a share's pieces: the codes of a window, or of four columns as a lane multiplies them. */
__device__ __forceinline__ u32 word_of(const u32 *words, u32 piece, u32 i)
{
#if SPARSE
    u32 window = 4 * piece + i;
    u32 at = BOUNDS ? i * LENGTH + 2 * piece : window / WINDOWS * LENGTH + window % WINDOWS * 2;
    if (LENGTH == 2)
        return words[at / 4] >> (at % 4 * 8) & 0xffff;
    return at % 4 == 0 ? words[at / 4] : bytes_of(words[at / 4], words[at / 4 + 1], 0x5432);
#else
    return words[2 * i + piece];
#endif
}

/* Where a piece of a share is among those of the token. */
__device__ __forceinline__ u32 place_of_piece(u32 share, u32 piece)
{
#if SPARSE
    if (BOUNDS) /* of 16 blocks, first all first windows */
        return share / 4 * (4 * WINDOWS) + piece * 4 + share % 4;
#endif
    return share * SHARE_PIECES + piece;
}

/* The columns of a share, as they lie. */
struct Share {
    Raw raw[SHARE_COLUMNS / 8];

    /* The first of the columns of raw[i]. */
    static __device__ __forceinline__ u32 column(u32 share, u32 i)
    {
        return SPARSE ? share * SHARE_COLUMNS + 8 * i : share / 2 * 64 + 16 * i + share % 2 * 8;
    }

    /* Of a token that begins at number `first` of x. */
    __device__ __forceinline__ void read(const Arguments &it, const void *x, u64 first, u32 share)
    {
#pragma unroll
        for (u32 i = 0; i < SHARE_COLUMNS / 8; i++)
            raw[i] = read_eight(it, x, first, column(share, i));
    }

    __device__ __forceinline__ float absmax(float absmax) const
    {
#pragma unroll
        for (int i = 0; i < SHARE_COLUMNS / 8; i++)
            absmax = absmax_of(raw[i], absmax);
        return absmax;
    }

    /* Codes, in the order of multiplication. */
    __device__ __forceinline__ void write(const Arguments &it, u32 token, u32 share, const Divisor &by) const
    {
        u32 words[SHARE_COLUMNS / 4];
#pragma unroll
        for (int i = 0; i < SHARE_COLUMNS / 8; i++) {
            Eight eight = values_of(raw[i]);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const float *four = eight.value + 4 * j;
                words[2 * i + j] = bytes_of(two_codes(by.quotient(four[0]), by.quotient(four[1])),
                                            two_codes(by.quotient(four[2]), by.quotient(four[3])), 0x5410);
            }
        }
#pragma unroll
        for (u32 piece = 0; piece < SHARE_PIECES; piece++) {
            Four four;
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                four.word[i] = word_of(words, piece, i);
            u32 place = place_of_piece(share, piece);
            if (place < it.pieces)
                *(Four *)(it.codes + place_of_codes(it, place, token)) = four;
        }
    }
};
