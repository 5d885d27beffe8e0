/* Copies of the weight and the codes to the rings in shared memory. */

#define STEPS (UNIT / STEP)
#define PIECES (STEPS + METADATA / 16)        /* of 16 bytes that a lane copies of a unit */
#define HALF_PIECE (SPARSE && METADATA == 8) /* one more, of half of the lanes */
#define WARP_UNIT (PIECES * 512 + HALF_PIECE * 256)
/* Where a warp's values of a unit of a sparse weight lie; those of two halves lie together. */
#if HALVES == 2
#define BOTH_AT ((((u64)four * ((it.units + 1) / 2) + unit / 2) * 4 + warp) * (2 * WARP_UNIT))
#define VALUES_AT (BOTH_AT + unit % 2 * (STEPS * 512))
#else
#define VALUES_AT ((((u64)four * it.units + unit) * 4 + warp) * WARP_UNIT)
#endif
#define STAGE ((SLABS ? SLABS : GROUPS * 4) * WARP_UNIT)
#define RING (STAGES * STAGE)
#define BULK (WARPGROUP && !STREAM) /* the copy engine copies the codes */
#define MOST_UNITS 128              /* of codes that a block holds */

/* A warp's 16 rows of a unit, if it has any. Sparse: as prepared.py lays them out. Dense: lane 4g + q gets columns 16q …
   16q + 15 of 64 of rows g and g + 8. */
__device__ __forceinline__ void copy_weight(const Arguments &it, u32 tile, u32 unit, u32 to)
{
    u32 lane = threadIdx.x % 32;
#if SLABS
    Slabs own(it);
    u32 slab = own.first + threadIdx.x / 32, warp = slab % 4, four = slab / 4; /* four of them lie together */
    if (threadIdx.x / 32 >= own.count)
        return;
#else
    u32 warp = threadIdx.x / 32 % 4, four = tile * ROW_GROUPS + threadIdx.x / 128 % ROW_GROUPS;
#endif
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const u8 *from = it.weight;
        bool real;
        if (SPARSE) {
            real = SLABS || ROW_GROUPS == 1 || four * ROWS < it.rows;
            from += real ? VALUES_AT + i * 512 + lane * 16 : 0;
        } else {
            u32 row = four * ROWS + warp * SLAB_ROWS + lane / 4 + i % 2 * 8;
            u32 column = unit * UNIT + i / 2 * 64 + lane % 4 * 16;
            real = row < it.rows && column < it.columns;
            from += real ? (u64)row * it.columns + column : 0;
        }
        copy(to + i * 512 + lane * 16, from, real);
    }
#if SPARSE && HALVES == 2
    copy_eight(to + STEPS * 512 + lane * 8, it.weight + BOTH_AT + 2 * STEPS * 512 + lane * 16 + unit % 2 * 8);
#elif HALF_PIECE
    bool real = SLABS || ROW_GROUPS == 1 || four * ROWS < it.rows;
    if (lane < 16)
        copy(to + PIECES * 512 + lane * 16,
             it.weight + (real ? VALUES_AT + PIECES * 512 + lane * 16 : 0), real);
#endif
}

/* All threads: the codes of a unit. */
__device__ __forceinline__ void copy_codes(const Arguments &it, u32 unit, u32 to)
{
#pragma unroll
    for (u32 i = 0; i < CODES_UNIT; i += THREADS * 16) {
        u32 at = i + threadIdx.x * 16;
        if (CODES_UNIT % (THREADS * 16) == 0 || at < CODES_UNIT)
            copy(to + at, it.codes + (u64)unit * CODES_UNIT + at);
    }
}

/* One thread: the codes of a unit, by the copy engine; the barrier tells when they are there. */
__device__ __forceinline__ void copy_codes_bulk(const Arguments &it, u32 unit, u32 to, u32 barrier)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(CODES_UNIT) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(it.codes + (u64)unit * CODES_UNIT), "r"(CODES_UNIT), "r"(barrier) : "memory");
}

__device__ __forceinline__ void wait_bulk(u32 barrier)
{
    u32 done;
    do
        asm volatile("{.reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], 0; selp.b32 %0, 1, 0, done;}"
                     : "=r"(done) : "r"(barrier) : "memory");
    while (!done);
}

/* What threads copied is seen by wgmma after the next barrier. */
__device__ __forceinline__ void show_to_wgmma()
{
#if WARPGROUP
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
