/* Sums of the parts into which the columns of a tile are split: among the blocks of a cluster, or between two
   clusters. */

#define PART_WARP (TILES * 512) /* bytes of a warp's sums: [8 tokens][lane][16 bytes] */

/* As what they are: as bits, floats would be copied between products, and the tensor cores wait for that. */
#if FLOAT
#define SUM_IN "f"
#define SUM_OUT "=f"
#define SUM_TYPE ".f32"
#else
#define SUM_IN "r"
#define SUM_OUT "=r"
#define SUM_TYPE ".s32"
#endif

__device__ __forceinline__ void store(u32 at, const Sum *four)
{
    asm volatile("st.shared.v4" SUM_TYPE " [%0], {%1, %2, %3, %4};" ::"r"(at), SUM_IN(four[0]), SUM_IN(four[1]),
                 SUM_IN(four[2]), SUM_IN(four[3]) : "memory");
}

__device__ __forceinline__ void load_of_cluster(Sum *four, u32 at)
{
    asm volatile("ld.shared::cluster.v4" SUM_TYPE " {%0, %1, %2, %3}, [%4];" : SUM_OUT(four[0]), SUM_OUT(four[1]),
                 SUM_OUT(four[2]), SUM_OUT(four[3]) : "r"(at) : "memory");
}

/* Consumers: the sums over all columns of this block's share of the tokens. The rings are done with: a cluster has one tile.
   Parts are added in their order, so results are repeatable. */
__device__ __forceinline__ void add_parts(const Rings &rings, const Sum *sums, Sum *whole, u32 rank)
{
    u32 own = rings.base + threadIdx.x / 32 * PART_WARP + threadIdx.x % 32 * 16;
    asm volatile("bar.sync 1, %0;" ::"n"(WARPGROUPS * 128) : "memory"); /* all have multiplied */
#pragma unroll
    for (u32 i = 0; i < TILES; i++)
        store(own + i * 512, sums + 4 * i);
    meet_cluster();
#pragma unroll
    for (u32 i = 0; i < TILES / SPLITS; i++) {
        u32 at = own + (rank * (TILES / SPLITS) + i) * 512;
#pragma unroll
        for (u32 part = 0; part < SPLITS; part++) {
            Sum one[4];
            load_of_cluster(one, address_in(at, part));
#pragma unroll
            for (u32 k = 0; k < 4; k++)
                whole[4 * i + k] = part == 0 ? one[k] : whole[4 * i + k] + one[k];
        }
    }
}

#define ABSENT 0x80000000u /* what `arrivals` are before and after a launch: few_tokens/exchange.py */
#define PUBLISHED 1u

__device__ __forceinline__ void store_part(Sum *to, const Sum *four)
{
    asm volatile("st.global.v4" SUM_TYPE " [%0], {%1, %2, %3, %4};" ::"l"(to), SUM_IN(four[0]), SUM_IN(four[1]),
                 SUM_IN(four[2]), SUM_IN(four[3]) : "memory");
}

__device__ __forceinline__ void load_part(Sum *four, const Sum *from)
{
    asm volatile("ld.global.cg.v4" SUM_TYPE " {%0, %1, %2, %3}, [%4];" : SUM_OUT(four[0]), SUM_OUT(four[1]),
                 SUM_OUT(four[2]), SUM_OUT(four[3]) : "l"(from) : "memory");
}

/* A warpgroup's sums of half of a tile's columns; another cluster has the other half. Who comes first leaves its sums and is
   done; true for the second, which then has both: none depends on a cluster that has not begun. Two numbers give the same sum
   in either order. place: of the warpgroup among those of halved tiles. word: in shared memory that the warpgroup is done
   with. */
__device__ __forceinline__ bool add_other(const Arguments &it, Sum *sums, u32 place, u32 word)
{
    u32 thread = threadIdx.x % 128, before;
    u32 *arrival = it.arrivals + place;
    Sum *part = (Sum *)it.parts + ((u64)place * TILES * 128 + thread) * 4;
    if (thread == 0) {
        before = atomicAdd(arrival, 1);
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(word), "r"(before) : "memory");
    }
    meet_warpgroup();
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(before) : "r"(word) : "memory");
    if (before == ABSENT) {
#pragma unroll
        for (u32 i = 0; i < TILES; i++)
            store_part(part + i * 512, sums + 4 * i);
        meet_warpgroup();
        if (thread == 0) {
            __threadfence();
            asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(arrival), "r"(PUBLISHED) : "memory");
        }
        return false;
    }
    if (thread == 0) {
        while (before != PUBLISHED)
            asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(before) : "l"(arrival) : "memory");
        __threadfence();
        *arrival = ABSENT;
    }
    meet_warpgroup();
    const u32 AT_ONCE = 4;
#pragma unroll
    for (u32 i = 0; i < TILES; i += AT_ONCE) {
        Sum other[4 * AT_ONCE];
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++)
            load_part(other + 4 * j, part + (i + j) * 512);
#pragma unroll
        for (u32 j = 0; j < 4 * AT_ONCE; j++)
            sums[4 * i + j] += other[j];
    }
    return true;
}
