/* Products of many tokens with sparse 8-bit weights on compute capability 9.0: scales and bias in the epilogue.

   The weight lies in the order that the product of few tokens reads (few_tokens/prepared.py), so that one prepared weight
   serves both: fragments of wgmma's sparse operand, which it takes from registers. Of the operands, then, only the codes
   are read from shared memory by the tensor cores, which is what limits a sparse product: at full rate an instruction of
   64 rows and 256 tokens reads 16 KiB in 128 cycles, all that shared memory gives.

   The launch before (quantize.cu) has made the codes. This one is persistent: clusters take tiles of SHARERS * TILE_ROWS rows
   and TOKENS tokens in turn. Of a block, one thread copies: units of the weight into one ring, pieces of 128 columns of the
   codes into another. The blocks of a cluster are either SHARERS, which have rows of their own and multiply the same codes:
   each copies its share of a piece to all of them. Or they are SPLITS of the columns of one tile, where there are too few
   tiles for all multiprocessors: there is one tile for each cluster, and in the end every block adds up all parts of its
   share of the tokens. Each of the WARPGROUPS consumers has 64 rows; it may run ahead of the others as far as the rings
   allow.

   Settled when this is compiled (kernel.py):
     LENGTH, UNIT, METADATA, TABLE_0 … TABLE_3, FLOAT, X, BIAS    as in few_tokens/kernel.cu
     TILES             tokens of a tile / 8: 8, 16, 24 or 32
     WARPGROUPS        of 64 rows, of a block: 2 or 3
     CLUSTER, SPLITS   blocks of a cluster, 1, 2 or 4; SPLITS of the columns of a tile: as many, or 1
     STAGES, UNITS     pieces of codes and units of weight in their rings
     BAND              tiles of tokens that are done before the next rows */

#include "common.cuh"
#include "metadata.cuh"
#include "output.cuh"
#include "epilogue.cuh"
#include "rings.cuh"
#include "multiply.cuh"
#include "parts.cuh"

#define CONSUMERS (WARPGROUPS * 128)
#define PRODUCER_REGISTERS (WARPGROUPS == 2 ? 40 : 32)
#define CONSUMER_REGISTERS (WARPGROUPS == 2 ? 232 : 160)

/* What a cluster multiplies, one after the other: tiles, or the half of a tile. In the last round, where some clusters would
   idle, the tiles that are left (`halved` of them, for at least twice as many clusters) have two clusters each. All others
   go through the columns at the same time, so that what they read is in the L2 cache. */
struct Work {
    const Arguments &it;
    u32 next_tile = blockIdx.x / CLUSTER;
    u32 tile, begin, end; /* units of it */
    bool half;

    __device__ __forceinline__ explicit Work(const Arguments &it) : it(it) {}

    __device__ __forceinline__ u32 whole() const { return it.row_tiles * it.token_tiles - it.halved; }

    __device__ __forceinline__ bool next()
    {
        u32 tiles = whole(), part = blockIdx.x % SPLITS;
        tile = next_tile;
        next_tile += gridDim.x / CLUSTER;
        begin = it.units * part / SPLITS;
        end = it.units * (part + 1) / SPLITS;
        half = tile >= tiles;
        if (half && tile < tiles + it.halved)
            end = it.units / 2;
        else if (half) {
            tile -= it.halved;
            begin = it.units / 2;
        }
        return tile < tiles + it.halved;
    }
};

/* A tile of a cluster: bands of BAND tiles of tokens, in a band tile after tile of the same rows. */
struct Tile {
    u32 row_group, token; /* of TILE_ROWS rows, this block's; the first token */

    __device__ __forceinline__ Tile(const Arguments &it, u32 number, u32 rank)
    {
        u32 band = number / (BAND * it.row_tiles), within = number - band * (BAND * it.row_tiles);
        u32 width = min(BAND, it.token_tiles - band * BAND), row_tile = within / width;
        row_group = row_tile * SHARERS + rank % SHARERS;
        token = (band * BAND + within - row_tile * width) * TOKENS;
    }
};

/* One thread of a block: all copies. */
__device__ __forceinline__ void produce(const Arguments &it, const Rings &rings, u32 rank)
{
    Turn<UNITS> unit_turn;
    Turn<STAGES> piece_turn;
    u32 slabs = (it.rows + ROWS - 1) / ROWS;
    bool waited = false;
    for (Work work(it); work.next();) {
        Tile tile(it, work.tile, rank);
        for (u32 unit = work.begin; unit < work.end; unit++) {
            wait(rings.unit_free(unit_turn.place), unit_turn.phase ^ 1);
            u32 copied = rings.unit_copied(unit_turn.place), to = rings.unit(unit_turn.place);
            expect(copied, WARPGROUPS * SLAB_UNIT);
            for (u32 i = 0; i < WARPGROUPS; i++) {
                /* Rows beyond the weight: any rows, what they give is not written. */
                u32 slab = min(tile.row_group * WARPGROUPS + i, slabs - 1);
                copy_bulk(to + i * SLAB_UNIT, it.weight + ((u64)slab * it.units + unit) * SLAB_UNIT, SLAB_UNIT, copied);
            }
            unit_turn.next();
            if (!waited)
                wait_for_previous(); /* the codes are of the launch before this one; the weight is not */
            waited = true;
            for (u32 piece = 0; piece < UNIT_PIECES; piece++) {
                wait(rings.piece_free(piece_turn.place), piece_turn.phase ^ 1);
                copied = rings.piece_copied(piece_turn.place);
                expect(copied, PIECE);
                u32 share = rank % SHARERS;
                copy_tile(rings.piece(piece_turn.place) + share * (PIECE / SHARERS), &it.map,
                          (unit * UNIT_PIECES + piece) * 128, tile.token + share * (TOKENS / SHARERS), copied);
                piece_turn.next();
            }
        }
    }
}

/* What a warpgroup multiplies with a piece of codes. */
struct Values {
    Four step[2];
    u32 metadata[2];
};

/* One warpgroup's way through a tile: pieces of codes, and of its 64 rows of the units of the weight. While the tensor
   cores multiply one piece, the values of the next one are read. */
struct Consumer {
    const Rings &rings;
    u32 own;           /* where a warp's rows lie in a unit */
    Metadata metadata; /* of the unit of which values were read last */
    Turn<UNITS> unit_turn;
    Turn<STAGES> piece_turn;

    __device__ __forceinline__ u32 rows() const { return rings.unit(unit_turn.place) + own; }

    __device__ __forceinline__ void read(Values &values, u32 piece) const
    {
        u32 at = rows() + piece * 1024 + threadIdx.x % 32 * 16;
        values.step[0] = load(at);
        values.step[1] = load(at + 512);
        metadata.read(values.metadata, piece);
    }

    /* The first values of the unit that comes up. */
    __device__ __forceinline__ void begin_unit(Values &values)
    {
        wait(rings.unit_copied(unit_turn.place), unit_turn.phase);
        metadata = Metadata(rows() + STEPS * 512 + threadIdx.x % 32 * METADATA);
        read(values, 0);
    }

    /* When the products have been given its last values: loads that are under way may be late, as the tensor cores read
       shared memory too, and what is released is overwritten at once. */
    __device__ __forceinline__ void end_unit()
    {
        release(rings.unit_free(unit_turn.place));
        unit_turn.next();
    }

    /* FIRST: which of the values are read, those of the unit's first piece. The next unit is begun, if there is one. */
    template <u32 FIRST>
    __device__ __forceinline__ void multiply_unit(Sum *sums, Values (&values)[2], bool begun, bool last)
    {
#pragma unroll
        for (u32 piece = 0; piece < UNIT_PIECES; piece++) {
            const Values &now = values[(FIRST + piece) % 2];
            Values &next = values[(FIRST + piece + 1) % 2];
            wait(rings.piece_copied(piece_turn.place), piece_turn.phase);
            u64 codes = descriptor(rings.piece(piece_turn.place));
            begin_products(sums);
            multiply(sums, now.step[0], now.metadata[0], codes, begun || piece > 0);
            multiply(sums, now.step[1], now.metadata[1], codes + STEP / 16, true);
            commit_products();
            if (piece + 1 == UNIT_PIECES)
                end_unit();
            await_products<1>(sums);
            if (begun || piece > 0)
                release_everywhere(rings.piece_free(piece_turn.before()));
            piece_turn.next();
            if (piece + 1 < UNIT_PIECES)
                read(next, piece + 1);
            else if (!last)
                begin_unit(next);
        }
    }
};

__device__ __forceinline__ void consume(const Arguments &it, const Rings &rings, u32 group, u32 rank)
{
    u32 warp = threadIdx.x / 32 % 4;
    bool odd = false;
    Consumer consumer{rings, group * SLAB_UNIT + warp * WARP_UNIT, {}, {}, {}};
    wait_for_previous();
    for (Work work(it); work.next(); odd = !odd) {
        Tile tile(it, work.tile, rank);
        Epilogue<TOKENS / SPLITS> epilogue(it, rings.outputs(group), (tile.row_group * WARPGROUPS + group) * ROWS,
                                           tile.token + rank % SPLITS * (TOKENS / SPLITS), odd);
        Sum sums[4 * TILES];
        Values values[2];
        u32 unit = work.begin;
        consumer.begin_unit(values[0]);
        for (; unit + 1 < work.end; unit += 2) {
            consumer.multiply_unit<0>(sums, values, unit > work.begin, false);
            consumer.multiply_unit<UNIT_PIECES % 2>(sums, values, true, unit + 2 == work.end);
        }
        if (unit < work.end)
            consumer.multiply_unit<0>(sums, values, unit > work.begin, true);
        await_products<0>(sums);
        release_everywhere(rings.piece_free(consumer.piece_turn.before()));
#if SPLITS > 1
        Sum whole[4 * TILES / SPLITS];
        add_parts(rings, sums, whole, rank);
        epilogue.write(whole);
#else
        if (!work.half || add_other(it, sums, ((work.tile - work.whole()) * SHARERS + rank) * WARPGROUPS + group, epilogue.base))
            epilogue.write(sums);
#endif
    }
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + 128, 1) IN_CLUSTERS
    product(const __grid_constant__ Arguments it)
{
    Rings rings;
    u32 group = threadIdx.x / 128, rank = blockIdx.x % CLUSTER;
    if (threadIdx.x == 0)
        rings.begin();
    let_next_begin();
    meet_cluster();
    if (group == WARPGROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
        if (threadIdx.x == CONSUMERS)
            produce(it, rings, rank);
        __syncwarp();
#if SPLITS > 1
        meet_cluster(); /* the parts lie in shared memory */
#endif
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
        consume(it, rings, group, rank);
    }
    meet_cluster(); /* until then others may release or fill what lies here */
}
