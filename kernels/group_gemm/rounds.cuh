/* The order in which a block multiplies units, and the copies of its chunks ahead of it. */

/* Units of a block that are multiplied in one round: places bottom … top - 1 in the order of tiles, then units. */
struct Round {
    u32 tile, start, top, bottom; /* start: the place of the tile's first unit */

    __device__ __forceinline__ Round(const Arguments &it, u32 begin, u32 end) : top(end)
    {
        tile = (end - 1) / it.units;
        start = tile * it.units;
        settle(begin);
    }

    __device__ __forceinline__ void settle(u32 begin)
    {
        u32 low = max(begin, start);
        bottom = top - min(top - low, (u32)COLUMN_WARPS);
    }

    __device__ __forceinline__ void advance(const Arguments &it, u32 begin)
    {
        top = bottom;
        if (top <= begin)
            return;
        if (top == start) {
            tile--;
            start -= it.units;
        }
        settle(begin);
    }

    __device__ __forceinline__ u32 count() const { return top - bottom; }
};

struct Worker {
    u32 row, column; /* warp of the rows, of the columns, of a block */

    __device__ __forceinline__ Worker() : row(threadIdx.x / 32 % ROW_WARPS), column(threadIdx.x / 32 / ROW_WARPS) {}

    __device__ __forceinline__ u32 slab(u32 tile) const { return tile * ROW_WARPS + row; }

    /* Whether there are rows for this warp. */
    __device__ __forceinline__ bool exists(const Arguments &it, u32 tile) const { return slab(tile) * SLAB < it.rows; }

    /* Whether this warp has a chunk in a round. */
    __device__ __forceinline__ bool works(const Arguments &it, const Round &round) const
    {
        return column < round.count() && exists(it, round.tile);
    }

    /* Whether it multiplies: a warpgroup does so as a whole. */
    __device__ __forceinline__ bool multiplies(const Arguments &it, const Round &round) const
    {
        return WARPGROUP ? column < round.count() : works(it, round);
    }

    /* Whether it writes the sums of 8 tokens of its rows: blocks of a cluster, and their warps, have some each. */
    __device__ __forceinline__ bool finishes(u32 tile) const
    {
        return CLUSTER == 1 || (tile % CLUSTER == blockIdx.x % CLUSTER && tile / CLUSTER % COLUMN_WARPS == column);
    }

    /* Of that chunk. */
    __device__ __forceinline__ u32 unit(const Round &round) const { return round.top - 1 - column - round.start; }
};

/* 16 bytes of activations to a stage. The first round's are written at once, others copied as its chunks are. */
template <bool FIRST> __device__ __forceinline__ void bring(u8 *to, const u8 *from)
{
    if (FIRST)
        *(Four *)to = *(const Four *)from;
    else
        copy(address(to), from);
}

#if WARPGROUP
/* Activations of a round: units as they lie. */
template <bool FIRST> __device__ __forceinline__ void bring_activations(const Arguments &it, const Round &round, u8 *to)
{
#pragma unroll
    for (u32 column = 0; column < COLUMN_WARPS; column++) {
        if (column >= round.count())
            continue;
        u32 unit = round.top - 1 - column - round.start;
#pragma unroll
        for (u32 at = threadIdx.x * 16; at < UNIT_BYTES; at += THREADS * 16)
            bring<FIRST>(to + column * UNIT_BYTES + at, it.halves + (u64)unit * UNIT_BYTES + at);
    }
}
#else
/* Activations of a round: rows of a unit, one by a warp at a time. */
template <bool FIRST> __device__ __forceinline__ void bring_activations(const Arguments &it, const Round &round, u8 *to)
{
#pragma unroll
    for (u32 i = 0; i < ITEMS; i++) {
        u32 number = i * WARPS + threadIdx.x / 32, token = number / COLUMN_WARPS, column = number % COLUMN_WARPS;
        if (token >= it.tokens || column >= round.count())
            continue;
        u32 lane = threadIdx.x % 32, unit = round.top - 1 - column - round.start;
        bring<FIRST>(to + (column * TOKENS + token) * PITCH + lane * 16,
                     it.halves + ((token * it.units + unit) * 32 + lane) * 16);
    }
}
#endif

/* The copies of a warp's chunks to its ring, some rounds ahead. */
struct Copies {
    Round round;
    u32 from, to; /* of the chunk of `round`, in 16 bytes; known a round before they are needed */

    __device__ __forceinline__ Copies(const Arguments &it, const Worker &worker, u32 begin, u32 end) : round(it, begin, end)
    {
        locate(it, worker, begin);
    }

    __device__ __forceinline__ void locate(const Arguments &it, const Worker &worker, u32 begin)
    {
        from = to = 0;
        if (round.top > begin && worker.works(it, round)) {
            const u32 *chunk = it.offsets + (u64)worker.slab(round.tile) * it.units + worker.unit(round);
            from = chunk[0];
            to = chunk[1];
        }
    }

    __device__ __forceinline__ void next(const Arguments &it, const Worker &worker, u32 begin, u32 stage)
    {
        u32 lane = threadIdx.x % 32, count = to - from;
        const u8 *source = it.chunks + ((u64)from + lane) * 16;
        u32 target = stage + lane * 16;
        for (u32 first = lane; first < count; first += 4 * 32, source += 4 * 512, target += 4 * 512) {
            copy(target, source);
#pragma unroll
            for (u32 i = 1; i < 4; i++)
                if (first + i * 32 < count)
                    copy(target + i * 512, source + i * 512);
        }
        if (round.top > begin) {
            round.advance(it, begin);
            locate(it, worker, begin);
        }
    }
};
