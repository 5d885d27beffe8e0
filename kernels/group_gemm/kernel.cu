/* Products of at most 64 tokens with weights quantized by groups, of which only some exist.

   Tensor cores multiply float16: a lane decodes the pieces of groups that exist to fragments of the operand (zeros for
   the others), so a weight is read once and lies nowhere dense. Sums are float32.

   The weight is divided into tiles of ROW_WARPS slabs of 32 rows, and units of 256 columns, in the order of tiles, then
   columns. Every block takes an equal share of this order (Stream-K), from its end to its beginning, COLUMN_WARPS units
   in a round. Each warp copies its chunks (a slab of a unit) into a ring of its own in shared memory. Where a tile is
   cut, the block with its last units adds up all parts: the other blocks begin with theirs and have published it by
   then. Results do not depend on who comes first.

   Launches overlap (programmatic dependent launch): rings are filled before activations are waited for.

   Settled when this is compiled (kernel.py):
     PIECE, BITS       columns of a piece: 4, 8 or 16; b: 4 or 8
     SHARE             2^SHARE pieces have one scale and zero point
     TILES             tokens / 8: 1, 2, 4 or 8
     X                 activations: 0 bfloat16, 1 float16, 2 float32, 3 INT8 codes with a scale per token
     OUT, BIAS         number kinds of the output and the bias, as of X; BIAS 3: none
     ROW_WARPS, COLUMN_WARPS
     STAGES            chunks in the ring of a warp
     BLOCKS            of a multiprocessor, at least */

#include "common.cuh"
#include "activations.cuh"
#include "weights.cuh"
#include "sums.cuh"
#include "rounds.cuh"

/* Of `whole` places, those before a share. 32 bits hold the product: division.py checks. */
__device__ __forceinline__ u32 before(u32 whole, u32 share, u32 shares) { return whole * share / shares; }

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) product(const __grid_constant__ Arguments it)
{
    __shared__ Scaling scalings[2][COLUMN_WARPS * TOKENS];
    const Worker worker;
    u32 lane = threadIdx.x % 32, total = it.tiles * it.units;
    u32 begin = before(total, blockIdx.x, gridDim.x), end = before(total, blockIdx.x + 1, gridDim.x);
    u32 ring = address(shared) + threadIdx.x / 32 * STAGES * it.room;
    u8 *activations = shared + WARPS * STAGES * it.room;
    float4 *gathered = (float4 *)(activations + 2 * ROUND_BYTES);
    let_next_begin();

    Copies copies(it, worker, begin, end);
#pragma unroll
    for (u32 stage = 0; stage < STAGES - 1; stage++)
        copies.next(it, worker, begin, ring + stage * it.room);
    wait_for_previous();
    Round now(it, begin, end), next = now;
    Items items;
    items.read(it, now.top - now.start, now.count());
    items.store(it, now.count(), activations, scalings[0]);
    next.advance(it, begin);
    __syncthreads();

    /* This lane's token and columns; of one tile of tokens only those that exist are read. */
    u32 token = TILES == 1 ? min(lane / 4, it.tokens - 1) : lane / 4;
    u32 own = address(activations) + (worker.column * TOKENS + token) * PITCH + lane % 4 * (2 * PIECE);
    u32 stage = 0, buffer = 0;
    float sums[4 * QUADS], factor[4];
    for (bool fresh = true; now.top > begin;) {
        if (fresh) {
#pragma unroll
            for (int i = 0; i < 4 * QUADS; i++)
                sums[i] = 0;
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (worker.exists(it, now.tile))
                    factor[i] = it.factor[worker.slab(now.tile) * SLAB + i * 8 + lane / 4];
        }
        bool more = next.top > begin, last = !more || next.tile != now.tile;
        if (more)
            items.read(it, next.top - next.start, next.count());
        wait_copies<STAGES - 2>();
        __syncwarp();
        copies.next(it, worker, begin, ring + (stage == 0 ? STAGES - 1 : stage - 1) * it.room); /* multiplied before */
        const Scaling *scaling = scalings[buffer] + worker.column * TOKENS;
        if (worker.works(it, now)) {
            adapt(sums, scaling);
            multiply_chunk(sums, ring + stage * it.room, factor, own + buffer * ROUND_BYTES);
        }
        if (more)
            items.store(it, next.count(), activations + (buffer ^ 1) * ROUND_BYTES, scalings[buffer ^ 1]);
        if (last) {
            rescale(sums, scaling);
            if (COLUMN_WARPS > 1)
                gather(sums, gathered);
            if (worker.column == 0 && worker.exists(it, now.tile)) {
                if (end < now.start + it.units && now.tile == (end - 1) / it.units)
                    publish(it, sums);
                else {
                    if (begin > now.start)
                        collect(it, sums, ((now.start + 1) * gridDim.x - 1) / total);
                    finish(it, worker.slab(now.tile), factor, sums);
                }
            }
        }
        __syncthreads();
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        buffer ^= 1;
        fresh = last;
        now = next;
        next.advance(it, begin);
    }
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
