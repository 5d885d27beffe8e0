/* Chunks of the weight: 32 rows (a slab) of 256 columns (a unit), as prepared.py lays them out.

   A piece is the part of a group, of at most 16 columns, that a lane multiplies. A step multiplies four pieces of every
   row: lane 4g + q has piece q of rows g, g + 8, g + 16 and g + 24. It takes as many columns q, 4 at a time, as the 16
   of an mma: activations and weights agree on that.

     header  4 words, the first: bytes from here to the numbers of groups
     masks   [STEPS][4 times 8 rows] a bit for every lane: whether its piece exists
     pieces  [those that exist, in the order of masks and lanes][PIECE_BYTES] stored codes, see `integers`
     groups  [in the same order] scale << 16 | zero point; 2^SHARE pieces have one
 */

#define STEPS (UNIT / (4 * PIECE))
#define MMAS (PIECE / 4) /* of a step */
#define PIECE_BYTES (PIECE * BITS / 8)
#define WORDS ((PIECE_BYTES + 3) / 4)
#define HEADER 16
#define PIECES_AT (HEADER + STEPS * 16)
#define SIXTEENTH 0x2c002c00u /* as two float16 */

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

__device__ __forceinline__ u32 multiply2(u32 a, u32 b)
{
    u32 out;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

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
    float scale = __uint_as_float(group) * factor; /* the zero point's bits are lost in rounding to float16 */
    u32 low = halves(scale, scale), term = multiply2(__byte_perm(group, 0, 0x1010), low);
    if (BITS == 8) {
#pragma unroll
        for (int i = 0; i < MMAS; i++) {
            a[2 * i] = fused2(word[i] & 0x00ff00ff, low, term);
            a[2 * i + 1] = fused2(__byte_perm(word[i], 0, 0x4341), low, term);
        }
        return;
    }
    u32 high = multiply2(low, SIXTEENTH);
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
__device__ __forceinline__ void multiply_chunk(float *sums, u32 chunk, const float *factor, const u8 *x)
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

/* (stored - zero) * scale of a piece of the weight in rows of `columns`, at `at`; group: 0 for zeros. */
__device__ __forceinline__ void write_piece(void *to, u64 at, u32 columns, const u8 *piece, u32 group)
{
    const int TOGETHER = BITS == 4 && PIECE >= 8 ? 8 : 4; /* codes: even columns, then odd ones */
    float scale = __uint_as_float(group & 0xffff0000);
    float value[PIECE];
#pragma unroll
    for (int i = 0; i < PIECE; i++) {
        int k = i / TOGETHER * TOGETHER + i % TOGETHER / 2 + i % 2 * (TOGETHER / 2);
        u32 code = group ? piece[k * BITS / 8] >> k * BITS % 8 & ((1 << BITS) - 1) : 0;
        value[i] = scale * (float)((int)code - (int)(group & 0xffff));
    }
#if OUT != 2 && PIECE >= 8
    if (columns % 8 == 0) {
#pragma unroll
        for (int i = 0; i < PIECE; i += 8) {
            u32 word[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                word[j] = OUT == 1 ? halves(value[i + 2 * j], value[i + 2 * j + 1])
                                   : bfloats(value[i + 2 * j], value[i + 2 * j + 1]);
            *(Four *)((u16 *)to + at + i) = Four{{word[0], word[1], word[2], word[3]}};
        }
        return;
    }
#endif
#pragma unroll
    for (int i = 0; i < PIECE; i++)
        write_number(to, at + i, value[i]);
}
