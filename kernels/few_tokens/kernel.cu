/* Products of few tokens with 8-bit weights, sparse (2:4 windows) or dense: multiply codes, scale.

   The launch before (quantize.cu) has made the codes of the activations, lifted, in the order in which `product` multiplies
   them. It reads every weight once, as fragments of the tensor cores' sparse (or dense) operand; of some patterns the
   metadata is stored in fewer bits than the tensor cores take (metadata.cuh).

   The weight is divided into tiles of 64 rows for each warpgroup that has rows of its own, and units of UNIT columns (of
   the slid weight where it is sparse), in the order of tiles, then columns. Every block takes an equal share of this
   order (Stream-K), so that all multiprocessors read equally many bytes. Each warp copies its 16 rows of a unit into its
   own ring in shared memory. Where a tile is cut, each block publishes its part of the sums, and the block with the last
   part adds all parts in their order: results do not depend on who comes first. Where the GPU has clusters, and a linear no
   more tiles than clusters find room for, the blocks of a cluster may have a tile among them instead, and add up its parts
   in their shared memory. Or every block has whole rows, about equally many slabs of 16, each a warp's, and multiplies
   them over all columns: then nothing is exchanged, and the codes are read once by every block, not once for every tile,
   of which a block has several where a linear has many rows. division.py estimates what takes less.

   Launches overlap (programmatic dependent launch): `product` fills its rings before it waits for the codes.

   Settled when this is compiled (kernel.py):
     SPARSE            the weight is sparse
     LENGTH            L of 2:L; 2 for 2:inf; 0 if dense
     UNIT, METADATA    columns of a unit; bytes of metadata that a lane has of it
     HALVES            2: units are halves of those in which the weight lies; otherwise 1
     TABLE_0 … TABLE_3 of 2:6: positions of the windows of a block, by the number of its zeros
     FLOAT             codes are E4M3, sums float32; otherwise INT8, sums int32
     TILES             tokens / 8: 1, 2, 4 or 8
     GROUPS, STAGES    warpgroups of a block; units in the ring of a warp
     ROW_GROUPS        warpgroups with rows of their own; the others take turns: GROUPS or 1
     STREAM            codes are copied unit by unit, as weights are (ROW_GROUPS is GROUPS); otherwise all that a block
                       needs are held
     CLUSTER           blocks that have a tile among them (STREAM); 0: equal shares, see above
     SLABS             the most slabs of a block that has whole rows (STREAM, CLUSTER 1): its tile; otherwise 0
     X, BIAS           number kinds of activations (and outputs) and bias: 0 bfloat16, 1 float16, 2 float32; BIAS 3: none
     WARPGROUP         multiply by wgmma (compute capability 9.0 alone), otherwise by mma */

#include "common.cuh"
#include "metadata.cuh"
#include "multiply.cuh"

#define THREADS (GROUPS * 128)
#define COLUMN_GROUPS (GROUPS / ROW_GROUPS)
#include "sums.cuh"
#include "copies.cuh"

/* sums [16 rows, TOKENS] += a warp's rows of a unit * its codes. */
__device__ __forceinline__ void multiply_unit(Sum *sums, u32 weight, u32 codes)
{
    u32 lane = threadIdx.x % 32;
    Four piece[8]; /* STEPS of them */
#pragma unroll
    for (int i = 0; i < STEPS; i++)
        piece[i] = load(weight + i * 512 + lane * 16);
#if SPARSE
    u32 metadata[STEPS + STEPS % 2];
    Metadata stored(weight + STEPS * 512 + lane * METADATA);
#pragma unroll
    for (int i = 0; i < STEPS; i += 2)
        stored.read(metadata + i, i / 2);
#endif
    begin_products(sums);
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        u32 step = codes + i * (STEP * TOKENS);
#if SPARSE
        multiply(sums, piece[i], metadata[i], step);
#else
        /* A lane holds 16 columns of a row, in four words: two of them a step. */
        Four low = piece[i / 2 * 2], high = piece[i / 2 * 2 + 1];
        int w = i % 2 * 2;
        multiply(sums, Four{{low.word[w], high.word[w], low.word[w + 1], high.word[w + 1]}}, 0, step);
#endif
    }
    commit_products();
}

/* Of `whole` units, those before a share. 32 bits hold the product: division.py checks. */
__device__ __forceinline__ u32 before(u32 whole, u32 share, u32 shares) { return whole * share / shares; }

extern "C" __global__ void IN_CLUSTERS __launch_bounds__(THREADS, 1) product(const __grid_constant__ Arguments it)
{
    u32 thread = threadIdx.x, turn = thread / 128 / ROW_GROUPS, total = it.tiles * it.units;
    u32 slot = thread / 32;
#if SLABS
    slot = min(slot, Slabs(it).count - 1); /* a warp without a slab multiplies the last one, in vain: all or none do */
#endif
    u32 ring = address(shared) + slot * WARP_UNIT; /* stages are STAGE apart */
    Sum *gathered = (Sum *)(shared + (CLUSTER ? 0 : RING)); /* a cluster's tile is the only one: the ring is free then */
    u32 codes = address(shared) + RING + (CLUSTER ? 0 : GATHERED);
#if BULK
    __shared__ u64 copied[MOST_UNITS];
    for (u32 i = thread; i < MOST_UNITS; i += THREADS)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(copied + i)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif

    let_next_begin();
    u32 begin = before(total, blockIdx.x, gridDim.x), end = before(total, blockIdx.x + 1, gridDim.x);
    u32 mine = begin + turn, ahead = mine, ahead_tile = mine / it.units, ahead_unit = mine - ahead_tile * it.units;
    auto copy_next = [&](u32 stage) {
        if (ahead < end) {
            copy_weight(it, ahead_tile, ahead_unit, ring + stage * STAGE);
            if (STREAM)
                copy_codes(it, ahead_unit, codes + stage * CODES_UNIT);
            ahead += COLUMN_GROUPS;
            ahead_unit += COLUMN_GROUPS;
            while (ahead_unit >= it.units) {
                ahead_unit -= it.units;
                ahead_tile++;
            }
        }
    };
    u32 tile = begin / it.units, first_unit = begin - tile * it.units;
#if STREAM
    for (u32 stage = 0; stage < min(STAGES - 1, end - begin); stage++)
        copy_weight(it, tile + (first_unit + stage) / it.units, (first_unit + stage) % it.units, ring + stage * STAGE);
    wait_for_previous();
    for (u32 stage = 0; stage < STAGES - 1; stage++) {
        if (ahead < end) {
            copy_codes(it, ahead_unit, codes + stage * CODES_UNIT);
            ahead++;
            if (++ahead_unit == it.units) {
                ahead_unit = 0;
                ahead_tile++;
            }
        }
        commit_copies(); /* the first one's with all weights */
    }
#else
#pragma unroll
    for (u32 stage = 0; stage < STAGES - 1; stage++) {
        copy_next(stage);
        commit_copies();
    }
    __syncthreads();
    wait_for_previous();
    /* The codes of all units of the share, from its first on, around the end of a tile. */
    u32 held = min(end - begin, it.units);
#if BULK
    for (u32 i = thread; i < held; i += THREADS) {
        u32 unit = first_unit + i < it.units ? first_unit + i : first_unit + i - it.units;
        copy_codes_bulk(it, unit, codes + i * CODES_UNIT, address(copied + i));
    }
#else
    for (u32 i = 0; i < held; i++)
        copy_codes(it, first_unit + i < it.units ? first_unit + i : first_unit + i - it.units, codes + i * CODES_UNIT);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
#endif
#endif

    u32 stage = 0, place = turn;
#if !CLUSTER
    u32 unfinished = ~0u;
#endif
    for (u32 at = begin; at < end; tile++) {
        u32 start = tile * it.units, until = min(end, start + it.units);
#if !CLUSTER
        Parts parts(it, start);
#endif
        Sum sums[4 * TILES];
#pragma unroll
        for (int i = 0; i < 4 * TILES; i++)
            sums[i] = 0;
        for (; mine < until; mine += COLUMN_GROUPS) {
            wait_copies<STAGES - 2>();
#if STREAM
            show_to_wgmma();
            __syncthreads();
            place = stage;
#else
            __syncwarp();
            while (place >= it.units)
                place -= it.units;
#endif
#if BULK
            wait_bulk(address(copied + place));
#endif
            multiply_unit(sums, ring + stage * STAGE, codes + place * CODES_UNIT);
            copy_next(stage == 0 ? STAGES - 1 : stage - 1); /* what was multiplied before */
            commit_copies();
            stage = stage == STAGES - 1 ? 0 : stage + 1;
            place += COLUMN_GROUPS;
            end_products(sums);
        }
#if CLUSTER
        deliver(it, tile, sums, gathered);
#else
        deliver(it, tile, parts, sums, gathered);
        if (parts.count > 1 && parts.own == parts.count - 1)
            unfinished = tile;
#endif
        at = until;
    }

#if !CLUSTER
    /* Only now: the blocks before this one publish at their ends, and began no later than it. */
    if (unfinished != ~0u) {
        Parts parts(it, unfinished * it.units);
        finish_parts(it, unfinished, parts);
    }
#elif CLUSTER > 1
    wait_for_cluster(); /* until the others have read what this block gathered */
#endif
}
