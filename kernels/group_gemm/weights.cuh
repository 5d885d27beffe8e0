/* Chunks of the weight: 32 rows (a slab) of 256 columns (a unit), as prepared.py lays them out.

   A piece is the part of a group, of at most 16 columns, that a lane multiplies. A step multiplies four pieces of every
   row: lane 4g + q has piece q of rows g, g + 8, g + 16 and g + 24. It takes as many columns q, 4 at a time, as the 16
   of an mma: activations and weights agree on that.

     header  4 words: bytes from here to the numbers of groups; PLACED: how many pieces come before steps 1, 2 and 3
     masks   [STEPS][4 times 8 rows] a bit for every lane: whether its piece exists
     pieces  [those that exist, in the order of masks and lanes][PIECE_BYTES] stored codes, see `integers`
     groups  [in the same order] scale << 16 | zero point; 2^SHARE pieces have one

   Pieces of 16 columns are PLACED: their zero points lie in the upper bits of 16, and below it where the first piece of
   the group is, for lanes that multiply one piece after another (few.cuh). Codes of 4 bits:
   g << 2 | q << 5 | step << 7 | rows / 8 << 9; of 8 bits, where the step must be found from the header:
   g << 1 | q << 4 | rows / 8 << 6. Smaller pieces leave too few bits. */

#define STEPS (UNIT / (4 * PIECE))
#define MMAS (PIECE / 4) /* of a step */
#define PIECE_BYTES (PIECE * BITS / 8)
#define WORDS ((PIECE_BYTES + 3) / 4)
#define HEADER 16
#define PIECES_AT (HEADER + STEPS * 16)
#define PLACED (PIECE == 16)
#define SIXTEENTH 0x2c002c00u /* as two float16 */

__device__ __forceinline__ u32 zero_point(u32 group) { return PLACED ? (group & 0xffff) >> (16 - BITS) : group & 0xffff; }

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
        value[i] = scale * (float)((int)code - (int)zero_point(group));
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
