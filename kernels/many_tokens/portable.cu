/* Products of many tokens with sparse 8-bit weights by mma.sp, on GPUs from compute capability 8.0 on.

   The weight lies as in kernel.cu. A block has a tile of 128 rows and 128 tokens; of its 8 warps each has 32 rows and 64
   tokens. Copies run STAGES - 1 pieces of 128 columns ahead; metadata is copied a unit at a time, with the unit's first
   piece.

   Settled when this is compiled (kernel.py): as in kernel.cu, without WARPGROUPS, CLUSTER and UNITS; TILES is 16. */

#define WARPGROUPS 2
#include "common.cuh"
#include "metadata.cuh"
#include "output.cuh"

#define THREADS 256
#define SLABS 8 /* of 16 rows, of a tile */
#define OWN 2   /* of them, of a warp */
#define WARP_TOKENS 64
#define WARP_UNIT (STEPS * 512 + METADATA * 32)
#define UNIT_PIECES (UNIT / 128)
#define VALUES (SLABS * 1024)
#define STAGE (VALUES + TOKENS * 128)
#define SLAB_METADATA (32 * METADATA)
#define METADATAS 2 /* units of metadata in their ring */
static_assert(STAGES <= 4, "metadata would be overwritten that is still read");
#define OUTPUTS (STAGES * STAGE + METADATAS * SLABS * SLAB_METADATA)

/* 16 bytes, zeros if not `real`. */
__device__ __forceinline__ void copy(u32 to, const void *from, bool real = true)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}

/* What copies of a block need: where its rows and tokens begin. */
struct Copies {
    const Arguments &it;
    u32 row_tile, token;

    /* A warp's 16 rows of a unit; of a tile's second half, which may lie beyond the weight, any rows. */
    __device__ __forceinline__ const u8 *slab(u32 slab, u32 unit) const
    {
        u32 last = (it.rows + ROWS - 1) / ROWS - 1, tile = min(row_tile * 2 + slab / 4, last);
        return it.weight + (((u64)tile * it.units + unit) * 4 + slab % 4) * WARP_UNIT;
    }

    __device__ __forceinline__ void piece(u32 number, u32 shared_base) const
    {
        u32 unit = number / UNIT_PIECES, within = number % UNIT_PIECES, to = shared_base + number % STAGES * STAGE;
#pragma unroll
        for (u32 i = 0; i < VALUES / 16; i += THREADS) {
            u32 at = i + threadIdx.x;
            copy(to + at * 16, slab(at / 64, unit) + within * 1024 + at % 64 * 16);
        }
#pragma unroll
        for (u32 i = 0; i < TOKENS * 8; i += THREADS) {
            u32 row = (i + threadIdx.x) / 8, chunk = (i + threadIdx.x) % 8;
            bool real = token + row < it.tokens;
            const u8 *from = it.codes + (real ? (u64)(token + row) * it.pieces * 16 + number * 128 + chunk * 16 : 0);
            copy(to + VALUES + row * 128 + (chunk ^ row % 8) * 16, from, real);
        }
        if (within == 0) {
            u32 kept = shared_base + STAGES * STAGE + unit % METADATAS * SLABS * SLAB_METADATA;
            for (u32 at = threadIdx.x; at < SLABS * SLAB_METADATA / 16; at += THREADS) {
                u32 one = at / (SLAB_METADATA / 16), chunk = at % (SLAB_METADATA / 16);
                copy(kept + at * 16, slab(one, unit) + STEPS * 512 + chunk * 16);
            }
        }
    }
};

/* Codes of 8 tokens, 64 columns: four matrices of 8 x 16 bytes. */
__device__ __forceinline__ Four load_codes(u32 at)
{
    Four out;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.word[0]), "=r"(out.word[1]), "=r"(out.word[2]), "=r"(out.word[3]) : "r"(at));
    return out;
}

#if FLOAT
#define SUM "+f"
#define TYPES ".row.col.f32.e4m3.e4m3.f32 "
#else
#define SUM "+r"
#define TYPES ".row.col.s32.s8.s8.s32 "
#endif

/* sums [16, 8 tokens] += a [16, STEP] * codes [STEP, 8]. */
__device__ __forceinline__ void multiply(Sum *s, const Four &a, u32 metadata, const Four &b)
{
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k64" TYPES
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, 0;"
                 : SUM(s[0]), SUM(s[1]), SUM(s[2]), SUM(s[3])
                 : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]),
                   "r"(b.word[0]), "r"(b.word[1]), "r"(b.word[2]), "r"(b.word[3]), "r"(metadata));
}

#define WARP_OUTPUTS 1024 /* bytes in which a warp turns its outputs */

/* A warp's 16 rows of its tokens, from a first row and token on. Outputs of 16 bits are turned in shared memory, 16 tokens
   at a time, so that two lanes write the 16 rows of a token. */
__device__ __forceinline__ void write_tile(const Arguments &it, const Sum *sums, u32 turned, u32 row, u32 token)
{
    u32 lane = threadIdx.x % 32, pair = lane % 4 * 2;
    TwoRows rows(it, row + lane / 4);
    /* A lane stores the address of 8 rows of a token: of matrix lane / 8, token lane % 8. Halves are swapped in every other
       four tokens, so that 8 lanes use all banks. */
    u32 stored = lane / 16 * 8 + lane % 8, store = turned + stored * 32 + (lane / 8 % 2 ^ stored / 4 % 2) * 16;
    u32 taken = lane / 2, take = turned + taken * 32 + (lane % 2 ^ taken / 4 % 2) * 16;
    u32 first = row + lane % 2 * 8;
#pragma unroll
    for (u32 i = 0; i < WARP_TOKENS / 16; i++) {
        const float *scale = it.scale + token + 16 * i + pair;
        float2 scales[2] = {*(const float2 *)scale, *(const float2 *)(scale + 8)};
        Sixteen outputs(sums + 8 * i, scales, rows);
        if (X == 2)
            outputs.write(it, row + lane / 4, token + 16 * i + pair);
        else {
            u32 buffer = i % 2 * 512, at_token = token + 16 * i + taken, words[4];
            outputs.narrow_to(words);
            __syncwarp(); /* lanes without outputs may be ahead */
            turn(store + buffer, words);
            __syncwarp();
            Four eight = load(take + buffer);
            if (at_token < it.tokens && first < it.rows)
                write_eight(it, place_of_outputs(it, first, at_token), eight, first);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) product(const __grid_constant__ Arguments it)
{
    u32 base = address(shared), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 number = blockIdx.x, band = number / (BAND * it.row_tiles), within = number - band * (BAND * it.row_tiles);
    u32 width = min(BAND, it.token_tiles - band * BAND), row_tile = within / width;
    Copies copies{it, row_tile, (band * BAND + within - row_tile * width) * TOKENS};
    u32 first_slab = warp % 4 * OWN, first_token = warp / 4 * WARP_TOKENS, pieces = it.units * UNIT_PIECES;
    Sum sums[OWN][WARP_TOKENS / 8][4] = {};
    u32 metadata[OWN][STEPS];

    let_next_begin();
    wait_for_previous();
#pragma unroll
    for (u32 piece = 0; piece < STAGES - 1; piece++) {
        if (piece < pieces)
            copies.piece(piece, base);
        commit_copies();
    }
    for (u32 unit = 0; unit < it.units; unit++)
#pragma unroll
        for (u32 part = 0; part < UNIT_PIECES; part++) {
            u32 piece = unit * UNIT_PIECES + part, values = base + piece % STAGES * STAGE;
            wait_copies<STAGES - 2>();
            __syncthreads();
            if (part == 0)
#pragma unroll
                for (int i = 0; i < OWN; i++) {
                    u32 slab = unit % METADATAS * SLABS + first_slab + i;
                    Metadata stored(base + STAGES * STAGE + slab * SLAB_METADATA + lane * METADATA);
#pragma unroll
                    for (u32 j = 0; j < UNIT_PIECES; j++)
                        stored.read(metadata[i] + 2 * j, j);
                }
            if (piece + STAGES - 1 < pieces)
                copies.piece(piece + STAGES - 1, base);
            commit_copies();
#pragma unroll
            for (u32 step = 0; step < 2; step++) {
                Four a[OWN];
#pragma unroll
                for (int i = 0; i < OWN; i++)
                    a[i] = load(values + (first_slab + i) * 1024 + step * 512 + lane * 16);
#pragma unroll
                for (u32 eight = 0; eight < WARP_TOKENS / 8; eight++) {
                    /* A lane has the address of a token's 16 columns: matrix lane / 8, token lane % 8. */
                    u32 token = first_token + eight * 8 + lane % 8, chunk = step * 4 + lane / 8;
                    Four b = load_codes(values + VALUES + token * 128 + (chunk ^ token % 8) * 16);
#pragma unroll
                    for (int i = 0; i < OWN; i++)
                        multiply(sums[i][eight], a[i], metadata[i][2 * part + step], b);
                }
            }
        }
#pragma unroll
    for (int i = 0; i < OWN; i++)
        write_tile(it, &sums[i][0][0], base + OUTPUTS + warp * WARP_OUTPUTS, row_tile * 128 + (first_slab + i) * 16,
                   copies.token + first_token);
}
