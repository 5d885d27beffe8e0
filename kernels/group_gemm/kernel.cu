/* Products of at most 64 tokens with weights quantized by groups, of which only some exist.

   Tensor cores multiply float16: a lane decodes the pieces of groups that exist to fragments of the operand (zeros for
   the others), so a weight is read once and lies nowhere dense. Sums are float32. Of more than 16 tokens, where the GPU
   has wgmma, whole warpgroups multiply: activations are read once for 64 rows, and decoding goes on meanwhile. One or two
   tokens leave tensor cores idle while half of the lanes decode nothing: there, lanes multiply pieces themselves
   (few.cuh).

   The weight is divided into tiles of ROW_WARPS slabs of 32 rows, and units of 256 columns, in the order of tiles, then
   columns. Every block takes an equal share of this order (Stream-K), from its end to its beginning, COLUMN_WARPS units
   in a round. Each warp copies its chunks (a slab of a unit) into a ring of its own in shared memory. Where a tile is
   cut, the block with its last units adds up all parts: the other blocks begin with theirs and have published it by
   then. Or the blocks of a cluster have a tile among them, and add up parts from each other's shared memory. Results do
   not depend on who comes first.

   Launches overlap (programmatic dependent launch): rings are filled before activations are waited for, which a launch
   before (convert) makes float16 for tensor cores.

   Settled when this is compiled (kernel.py):
     PIECE, BITS       columns of a piece: 4, 8 or 16; b: 4 or 8
     SHARE             2^SHARE pieces have one scale and zero point
     FEW               tokens, if they are 1 or 2 and multiplied without tensor cores, else 0
     TILES             tokens / 8: 1, 2, 4 or 8
     X                 activations: 0 bfloat16, 1 float16, 2 float32, 3 INT8 codes with a scale per token
     OUT, BIAS         number kinds of the output and the bias, as of X; BIAS 3: none
     WARPGROUP         multiply by wgmma (compute capability 9.0 alone)
     ROW_WARPS, COLUMN_WARPS
     CLUSTER           blocks of a cluster, which have a tile among them; 1: parts are published
     STAGES            chunks in the ring of a warp
     BLOCKS            of a multiprocessor, at least */

#include "common.cuh"
#include "activations.cuh"
#include "weights.cuh"
#include "rounds.cuh"
#include "sums.cuh"
#if FEW
#include "few.cuh"
#else
#include "tensor_cores.cuh"
#endif

/* What threads wrote to shared memory is seen by wgmma after the next barrier. */
__device__ __forceinline__ void show_to_wgmma()
{
#if WARPGROUP
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* Of `whole` places, those before a share. 32 bits hold the product: division.py checks. */
__device__ __forceinline__ u32 before(u32 whole, u32 share, u32 shares) { return whole * share / shares; }

extern "C" __global__ void IN_CLUSTERS __launch_bounds__(THREADS, BLOCKS) product(const __grid_constant__ Arguments it)
{
    const Worker worker;
    u32 total = it.tiles * it.units;
    u32 begin = before(total, blockIdx.x, gridDim.x), end = before(total, blockIdx.x + 1, gridDim.x);
    u8 *activations = shared, *rings = shared + WAY_BYTES;
    Vector *gathered = (Vector *)(rings + WARPS * STAGES * it.room);
    u32 ring = address(rings) + threadIdx.x / 32 * STAGES * it.room, stage = 0;
    let_next_begin();

    Round now(it, begin, end);
    Copies copies(it, worker, begin, end);
    copies.next(it, worker, begin, ring);
    if (STAGES > 2) {
        commit_copies();
        copies.next(it, worker, begin, ring + it.room);
    }
    Way way(it, worker, activations);
    wait_for_previous();
    if (COPIED) {
        Round next = now;
        next.advance(it, begin);
        bring_activations<true>(it, now, activations);
        if (STAGES > 2)
            bring_activations<false>(it, next, activations + ROUND_BYTES);
    }
    commit_copies();
    if (worker.works(it, now))
        way.prepare(it, worker.unit(now));

    float sums[SUMS];
    for (bool fresh = true; now.top > begin;) {
        if (fresh) {
#pragma unroll
            for (int i = 0; i < SUMS; i++)
                sums[i] = 0;
            if (WARPGROUP || worker.exists(it, now.tile))
                way.begin(it, worker.slab(now.tile));
        }
        wait_copies<STAGES - 2>();
        show_to_wgmma();
        if (COPIED)
            __syncthreads();
        else
            __syncwarp();
        u32 free = stage == 0 ? STAGES - 1 : stage - 1; /* multiplied before */
        if (COPIED)
            bring_activations<false>(it, copies.round, activations + free * ROUND_BYTES);
        copies.next(it, worker, begin, ring + free * it.room);
        commit_copies();
        Round next = now;
        next.advance(it, begin);
        bool works = worker.multiplies(it, now);
        if (works)
            way.bring();
        if (next.top > begin && worker.works(it, next))
            way.prepare(it, worker.unit(next));
        if (works)
            way.multiply(sums, ring + stage * it.room, stage, worker.unit(now));
        fresh = next.top <= begin || next.tile != now.tile;
#if CLUSTER > 1
        if (fresh) {
            wait_copies<0>();
            __syncthreads();
            share(worker, sums, (Vector *)shared);
            if (worker.exists(it, now.tile))
                way.finish(it, worker, worker.slab(now.tile), sums);
        }
#else
        if (fresh) {
            if (COLUMN_WARPS > 1)
                gather(sums, gathered);
            if (worker.column == 0 && worker.exists(it, now.tile)) {
                if (end < now.start + it.units && now.tile == (end - 1) / it.units)
                    publish(it, sums);
                else {
                    if (begin > now.start)
                        collect(it, sums, ((now.start + 1) * gridDim.x - 1) / total);
                    way.finish(it, worker, worker.slab(now.tile), sums);
                }
            }
        }
#endif
        now = next;
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
#if CLUSTER > 1
    wait_for_cluster();
#endif
}

/* out [rows, columns] = the weight. */
extern "C" __global__ void __launch_bounds__(THREADS) dequantize(const __grid_constant__ Arguments it)
{
    u32 lane = threadIdx.x % 32, slabs = (it.rows + SLAB - 1) / SLAB;
    for (u32 number = blockIdx.x * WARPS + threadIdx.x / 32; number < slabs * it.units; number += gridDim.x * WARPS) {
        const u8 *chunk = it.chunks + (u64)it.offsets[number] * 16, *pieces = chunk + PIECES_AT;
        const u32 *groups = (const u32 *)(chunk + *(const u32 *)chunk);
        u32 first_row = number / it.units * SLAB + lane / 4, first_column = number % it.units * UNIT + lane % 4 * PIECE;
        for (u32 i = 0; i < STEPS * 4; i++) {
            u32 mask = ((const u32 *)(chunk + HEADER))[i], before = __popc(mask & ((1u << lane) - 1)), count = __popc(mask);
            u32 row = first_row + i % 4 * 8, column = first_column + i / 4 * 4 * PIECE;
            if (row < it.rows && column < it.columns)
                write_piece(it.out, (u64)row * it.columns + column, it.columns, pieces + before * PIECE_BYTES,
                            mask >> lane & 1 ? groups[before >> SHARE] : 0);
            pieces += count * PIECE_BYTES;
            groups += count >> SHARE;
        }
    }
}
