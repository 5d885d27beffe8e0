/* What both kernels of many tokens use. */

#include "device.cuh"

#define SPARSE 1
#define ROWS 64
#define STEP 64 /* columns of an instruction */
#define STEPS (UNIT / STEP)
#define TILE_ROWS (ROWS * WARPGROUPS)

#if FLOAT
typedef float Sum;
#else
typedef int Sum;
#endif

struct alignas(64) Map { u64 word[16]; };

struct Arguments {
    Map map;                   /* of the codes, for the copy engine: [tokens, pieces * 16], boxes of [TOKENS / CLUSTER, 128] */
    const u8 *weight;          /* [tiles of 64 rows][units][4 warps][WARP_UNIT] */
    u8 *codes;                 /* [tokens][pieces * 16] */
    float *scale;              /* [tokens, up to a multiple of TOKENS] */
    const float *weight_scale; /* [rows] */
    const void *bias;          /* [rows] */
    void *out;                 /* [tokens, rows] */
    const void *x;             /* [tokens, columns] */
    void *parts;               /* sums of tiles that two clusters have: parts.cuh */
    u32 *arrivals;             /* [halved][SHARERS][WARPGROUPS] */
    u32 rows, columns, tokens, units, row_tiles, token_tiles, pieces, halved;
};

extern __shared__ u8 shared[];

/* Where a piece of 16 codes of a token lies. */
__device__ __forceinline__ u64 place_of_codes(const Arguments &it, u32 piece, u32 token)
{
    return ((u64)token * it.pieces + piece) * 16;
}
