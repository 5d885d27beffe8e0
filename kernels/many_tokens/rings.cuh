/* The rings in shared memory through which copies reach the consumers, and their barriers. */

#define SHARERS (CLUSTER / SPLITS)
#define WARP_UNIT (STEPS * 512 + METADATA * 32)
#define SLAB_UNIT (4 * WARP_UNIT) /* bytes of 64 rows of a unit */
#define UNIT_PIECES (UNIT / 128)  /* pieces of codes that a unit is multiplied with */
#define PIECE (TOKENS * 128)
#define ALIGNMENT 1024 /* of what is swizzled */

/* A place in a ring, and the parity of the barriers' phase when it comes up. */
template <u32 PLACES> struct Turn {
    u32 place = 0, phase = 0;

    __device__ __forceinline__ void next()
    {
        if (++place == PLACES) {
            place = 0;
            phase ^= 1;
        }
    }

    __device__ __forceinline__ u32 before() const { return place == 0 ? PLACES - 1 : place - 1; }
};

/* [STAGES][PIECE] codes, [UNITS][WARPGROUPS][SLAB_UNIT] weight, [WARPGROUPS][WARPGROUP_OUTPUTS]; barriers, 8 bytes each. */
struct Rings {
    u32 base;

    __device__ __forceinline__ Rings() { base = (address(shared) + ALIGNMENT - 1) & ~(ALIGNMENT - 1); }
    __device__ __forceinline__ u32 piece(u32 place) const { return base + place * PIECE; }
    __device__ __forceinline__ u32 unit(u32 place) const { return base + STAGES * PIECE + place * (WARPGROUPS * SLAB_UNIT); }
    __device__ __forceinline__ u32 outputs(u32 group) const { return unit(UNITS) + group * WARPGROUP_OUTPUTS; }
    __device__ __forceinline__ u32 barrier(u32 i) const { return outputs(WARPGROUPS) + 8 * i; }
    __device__ __forceinline__ u32 piece_copied(u32 place) const { return barrier(place); }
    __device__ __forceinline__ u32 piece_free(u32 place) const { return barrier(STAGES + place); }
    __device__ __forceinline__ u32 unit_copied(u32 place) const { return barrier(2 * STAGES + place); }
    __device__ __forceinline__ u32 unit_free(u32 place) const { return barrier(2 * STAGES + UNITS + place); }

    /* One thread, before others use them. A piece is free when all warpgroups of the cluster have released it. */
    __device__ __forceinline__ void begin() const
    {
        auto set = [](u32 at, u32 count) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
        };
        for (u32 i = 0; i < STAGES; i++) {
            set(piece_copied(i), 1);
            set(piece_free(i), WARPGROUPS * SHARERS);
        }
        for (u32 i = 0; i < UNITS; i++) {
            set(unit_copied(i), 1);
            set(unit_free(i), WARPGROUPS * 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
};

__device__ __forceinline__ void meet_cluster()
{
#if CLUSTER > 1
    leave_to_cluster();
    wait_for_cluster();
#else
    __syncthreads();
#endif
}

__device__ __forceinline__ void wait(u32 barrier, u32 parity)
{
    u32 done;
    do
        asm volatile("{.reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.b32 %0, 1, 0, done;}"
                     : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    while (!done);
}

/* So many bytes will be copied. */
__device__ __forceinline__ void expect(u32 barrier, u32 bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/* One lane of each warp of this block. */
__device__ __forceinline__ void release(u32 barrier)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* An address in shared memory of another block of the cluster. */
__device__ __forceinline__ u32 address_in(u32 at, u32 rank)
{
    u32 out;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(at), "r"(rank));
    return out;
}

/* A warpgroup's release of a piece, to all sharers: a thread each. wgmma has read for all of its warps. Not with
   .release.cluster, for which a thread waits for all that it has in flight: nothing that it wrote is handed over. */
__device__ __forceinline__ void release_everywhere(u32 barrier)
{
    u32 thread = threadIdx.x % 128;
#if SHARERS > 1
    if (thread < SHARERS) {
        u32 remote = address_in(barrier, thread);
        asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(remote) : "memory");
    }
#else
    if (thread == 0)
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}

__device__ __forceinline__ void copy_bulk(u32 to, const u8 *from, u32 bytes, u32 barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

/* This block's share of a piece, to all sharers. */
__device__ __forceinline__ void copy_tile(u32 to, const Map *map, u32 column, u32 token, u32 barrier)
{
#if SHARERS > 1
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
                 " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(column), "r"(token), "r"(barrier),
                 "h"((u16)((1 << SHARERS) - 1)) : "memory");
#else
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map), "r"(column), "r"(token), "r"(barrier) : "memory");
#endif
}
