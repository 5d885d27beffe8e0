/* Sums of the parts into which the columns of a tile are split, added up by the blocks of a cluster. */

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
