/* Products on tensor cores: lanes decode pieces to fragments of the operand, zeros for those that do not exist. */

#define WAY_BYTES (STAGES * ROUND_BYTES)

/* Where the next pieces and their groups begin. */
struct Cursor {
    u32 pieces, groups;

    __device__ __forceinline__ void advance(u32 mask)
    {
        u32 count = __popc(mask);
        pieces += count * PIECE_BYTES;
        groups += (count >> SHARE) * 4;
    }
};

/* a * b - c */
__device__ __forceinline__ u32 fused2(u32 a, u32 b, u32 c)
{
    u32 out;
    asm("{.reg .b32 less; neg.f16x2 less, %3; fma.rn.f16x2 %0, %1, %2, less;}" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}

/* (stored - zero) * scale of a piece as float16, 2^-24 of the scale's factor: stored codes in the low bits of a half are
   subnormal numbers, 2^-24 each. a[2 i], a[2 i + 1]: columns 4 i, 4 i + 1 and 4 i + 2, 4 i + 3. */
__device__ __forceinline__ void scaled(const u32 *word, u32 group, float factor, u32 *a)
{
    /* the bits of a zero point alone are lost in rounding to float16 */
    float scale = __uint_as_float(PLACED ? group & 0xffff0000 : group) * factor;
    u32 low = halves(scale, scale), high = multiply2(low, SIXTEENTH);
    u32 zeros = __byte_perm(group, 0, PLACED ? 0x4141 : 0x1010);
    u32 term = PLACED && BITS == 4 ? multiply2(zeros & 0x00f000f0, high) : multiply2(zeros, low);
    if (BITS == 8) {
#pragma unroll
        for (int i = 0; i < MMAS; i++) {
            a[2 * i] = fused2(word[i] & 0x00ff00ff, low, term);
            a[2 * i + 1] = fused2(__byte_perm(word[i], 0, 0x4341), low, term);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < MMAS; i++) {
        u32 codes = PIECE == 4 ? __byte_perm(word[0], 0, 0x4140) : i % 2 ? word[i / 2] >> 8 : word[i / 2];
        a[2 * i] = fused2(codes & 0x000f000f, low, term);
        a[2 * i + 1] = fused2(codes & 0x00f000f0, high, term);
    }
}

/* The group's number, 0 if this lane has no piece (`bits` is not negative). */
__device__ __forceinline__ u32 load_group(u32 at, u32 bits)
{
    u32 out;
    asm volatile("{.reg .pred exists; setp.lt.s32 exists, %2, 0; mov.b32 %0, 0; @exists ld.shared.b32 %0, [%1];}"
                 : "=r"(out) : "r"(at), "r"(bits));
    return out;
}

/* This lane's piece of the rows of a mask, zeros if it does not exist. */
__device__ __forceinline__ void decode(Cursor cursor, u32 mask, float factor, u32 *a)
{
    u32 bits = mask << (31 - threadIdx.x % 32), count = __popc(bits), word[WORDS]; /* pieces up to this lane's */
    load<PIECE_BYTES>(cursor.pieces + count * PIECE_BYTES - PIECE_BYTES, word); /* that of another, if it has none */
    scaled(word, load_group(cursor.groups + (SHARE ? (count - 1) >> SHARE : count - 1) * 4, bits), factor, a);
}

#if WARPGROUP
#include "warpgroups.cuh"
#else
__device__ __forceinline__ void multiply_tile(float *sums, const u32 *rows, const u32 *rows8, const u32 *x)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(rows[0]), "r"(rows8[0]), "r"(rows[1]), "r"(rows8[1]), "r"(x[0]), "r"(x[1]));
}

/* BYTES of activations as words: from shared memory, or through L1. */
template <int BYTES> __device__ __forceinline__ void load_activations(const u8 *from, u32 *word)
{
    if (COPIED)
        load<BYTES>(address(from), word);
    else if (BYTES == 8) {
        Two two = *(const Two *)from;
        word[0] = two.word[0], word[1] = two.word[1];
    } else {
        Four four = *(const Four *)from;
#pragma unroll
        for (int i = 0; i < 4; i++)
            word[i] = four.word[i];
    }
}

/* sums [2 times 16 rows][TILES][4] += a chunk * its activations. x: of this lane's token (g) and columns (q). */
__device__ __forceinline__ void multiply_chunk(float *sums, u32 chunk, u32, const float *factor, const u8 *x)
{
    Cursor cursor;
    load<4>(chunk, &cursor.groups);
    cursor.groups += chunk;
    cursor.pieces = chunk + PIECES_AT;
#pragma unroll(TILES < 4 && STEPS == 4 ? 4 : 2)
    for (int step = 0; step < STEPS; step++) {
        u32 masks[4], a[4][2 * MMAS];
        load<16>(chunk + HEADER + step * 16, masks);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            decode(cursor, masks[i], factor[i], a[i]);
            cursor.advance(masks[i]);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const u8 *from = x + tile * 8 * PITCH + step * 8 * PIECE;
            u32 b[2 * MMAS];
#pragma unroll
            for (int i = 0; i < (PIECE + 7) / 8; i++)
                load_activations<PIECE == 4 ? 8 : 16>(from + 16 * i, b + 4 * i);
#pragma unroll
            for (int i = 0; i < MMAS; i++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    multiply_tile(sums + (half * TILES + tile) * 4, a[2 * half] + 2 * i, a[2 * half + 1] + 2 * i, b + 2 * i);
        }
    }
}
#endif

struct Way {
    const u8 *own; /* activations of this lane's token and columns; of one tile of tokens only those that exist are read */
    float factor[4];
    u32 exists; /* all bits, or none: whether the slab of a warp that takes part for its warpgroup's sake exists */

    __device__ __forceinline__ Way(const Arguments &it, const Worker &worker, u8 *activations)
    {
#if WARPGROUP
        own = activations + worker.column * UNIT_BYTES;
        return;
#endif
        u32 lane = threadIdx.x % 32, token = COPIED ? lane / 4 : min(lane / 4, it.tokens - 1);
        own = COPIED ? activations + (worker.column * TOKENS + token) * PITCH : it.halves + token * it.units * UNIT * 2;
        own += lane % 4 * (2 * PIECE);
    }

    /* Begin a slab. */
    __device__ __forceinline__ void begin(const Arguments &it, u32 slab)
    {
        exists = slab * SLAB < it.rows ? ALL : 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
            factor[i] = exists ? it.factor[slab * SLAB + i * 8 + threadIdx.x % 32 / 4] : 0.0f;
    }

    /* Know which unit comes next. */
    __device__ __forceinline__ void prepare(const Arguments &it, u32 unit) {}
    __device__ __forceinline__ void bring() {}

    /* sums += a chunk * the activations of its unit, which are in the same stage. */
    __device__ __forceinline__ void multiply(float *sums, u32 chunk, u32 stage, u32 unit)
    {
        multiply_chunk(sums, chunk, exists, factor, own + (COPIED ? stage * ROUND_BYTES : unit * UNIT * 2));
    }

    /* Write a slab's sums, which are 2^-24 of the factor too small. */
    __device__ __forceinline__ void finish(const Arguments &it, const Worker &worker, u32 slab, const float *sums)
    {
#pragma unroll
        for (int rows = 0; rows < 4; rows++) {
            u32 row = slab * SLAB + rows * 8 + threadIdx.x % 32 / 4;
            if (row >= it.rows)
                continue;
            float back = __uint_as_float((266u << 23) - __float_as_uint(factor[rows])); /* 2^12 / factor */
            float bias = BIAS == 3 ? 0.0f : read_number<BIAS>(it.bias, row);
#pragma unroll
            for (int i = 0; i < 2 * TILES; i++) {
                u32 token = i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
                if (token >= it.tokens || !worker.finishes(i / 2))
                    continue;
                float out = sums[(rows / 2 * TILES + i / 2) * 4 + rows % 2 * 2 + i % 2] * it.back[token] * 4096.0f * back;
                write_number(it.out, (u64)token * it.rows + row, BIAS == 3 ? out : out + bias);
            }
        }
    }
};
