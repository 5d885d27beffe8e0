/* Parts of sums between warps and blocks.

   A lane has vectors of sums. Of tensor cores: [2 times 16 rows][TILES] quads, as mma leaves them: of rows g and g + 8
   (g + 16, g + 24), tokens 2q and 2q + 1 of eight: row g: 0 and 1, row g + 8: 2 and 3. Of FEW tokens: one, of the row of
   the lane's number. */

#define VECTORS (FEW ? 1 : 2 * TILES)
#define WIDTH (FEW ? FEW : 4)
#define SUMS (VECTORS * WIDTH)
#define ABSENT 0x80000000u /* not published: -0 is published as 0 */
#define PART (ROW_WARPS * VECTORS * WIDTH * 32) /* words of a block's part of a tile */

struct alignas(4 * WIDTH) Vector { u32 word[WIDTH]; };

/* Column warps' sums, added up in their order by the first one. All threads. */
__device__ __forceinline__ void gather(float *sums, Vector *gathered)
{
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncthreads(); /* those of the tile before have been added up */
    if (warp >= ROW_WARPS)
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            Vector mine;
#pragma unroll
            for (int j = 0; j < WIDTH; j++)
                mine.word[j] = __float_as_uint(sums[i * WIDTH + j]);
            gathered[((warp - ROW_WARPS) * VECTORS + i) * 32 + lane] = mine;
        }
    __syncthreads();
    if (warp < ROW_WARPS)
#pragma unroll
        for (int other = 0; other < COLUMN_WARPS - 1; other++)
#pragma unroll
            for (int i = 0; i < VECTORS; i++) {
                Vector more = gathered[((other * ROW_WARPS + warp) * VECTORS + i) * 32 + lane];
#pragma unroll
                for (int j = 0; j < WIDTH; j++)
                    sums[i * WIDTH + j] += __uint_as_float(more.word[j]);
            }
}

#if CLUSTER > 1
/* Blocks of a cluster have the units of a tile among them. Every warp leaves its sums in its own block's shared memory; each
   block adds up its share of the tokens, those of all warps in their order. */

/* sums of the tokens that are this warp's, of all. All threads of the cluster; `free`: shared memory that nothing is
   copied to any more. The others may read it until they have come to the next barrier. */
__device__ __forceinline__ void share(const Worker &worker, float *sums, Vector *free)
{
    u32 lane = threadIdx.x % 32, first = address(free + worker.row * VECTORS * 32 + lane);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        Vector mine;
#pragma unroll
        for (int j = 0; j < WIDTH; j++)
            mine.word[j] = __float_as_uint(sums[i * WIDTH + j]);
        free[(threadIdx.x / 32 * VECTORS + i) * 32 + lane] = mine;
    }
    leave_to_cluster();
    wait_for_cluster();
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        if (!worker.finishes(i % TILES))
            continue;
        Four parts[COLUMN_WARPS * CLUSTER];
#pragma unroll
        for (u32 part = 0; part < COLUMN_WARPS * CLUSTER; part++)
            parts[part] = load_from(part / COLUMN_WARPS, first + (part % COLUMN_WARPS * ROW_WARPS * VECTORS + i) * 512);
#pragma unroll
        for (int j = 0; j < WIDTH; j++)
            sums[i * WIDTH + j] = 0;
#pragma unroll
        for (u32 part = 0; part < COLUMN_WARPS * CLUSTER; part++)
#pragma unroll
            for (int j = 0; j < WIDTH; j++)
                sums[i * WIDTH + j] += __uint_as_float(parts[part].word[j]);
    }
    leave_to_cluster();
}
#endif

/* To other blocks, and from them. */
__device__ __forceinline__ void store_vector(u32 *to, const Vector &one)
{
#if FEW
#pragma unroll
    for (int j = 0; j < WIDTH; j++)
        asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(to + j), "r"(one.word[j]) : "memory");
#else
    asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(one.word[0]), "r"(one.word[1]),
                 "r"(one.word[2]), "r"(one.word[3]) : "memory");
#endif
}

__device__ __forceinline__ Vector load_vector(const u32 *from)
{
    Vector one;
#if FEW
#pragma unroll
    for (int j = 0; j < WIDTH; j++)
        asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(one.word[j]) : "l"(from + j) : "memory");
#else
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(one.word[0]), "=r"(one.word[1]), "=r"(one.word[2]), "=r"(one.word[3]) : "l"(from) : "memory");
#endif
    return one;
}

__device__ __forceinline__ u32 *place(const Arguments &it, u32 block)
{
    return it.sums + (u64)block * PART + (threadIdx.x / 32 * VECTORS * 32 + threadIdx.x % 32) * WIDTH;
}

__device__ __forceinline__ u32 published(float sum)
{
    u32 bits = __float_as_uint(sum);
    return bits == ABSENT ? 0 : bits;
}

__device__ __forceinline__ void publish(const Arguments &it, const float *sums)
{
    u32 *to = place(it, blockIdx.x);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        Vector mine;
#pragma unroll
        for (int j = 0; j < WIDTH; j++)
            mine.word[j] = published(sums[i * WIDTH + j]);
        store_vector(to + i * 32 * WIDTH, mine);
    }
}

/* sums += the parts of the blocks from `first` to this one, in their order. Waits for them, and leaves their places
   ABSENT for the next product. */
__device__ __forceinline__ void collect(const Arguments &it, float *sums, u32 first)
{
    for (u32 block = first; block < blockIdx.x; block++) {
        u32 *from = place(it, block);
        Vector more[VECTORS], none; /* read together: a part takes one trip to the L2 cache */
        bool absent;
        do {
            absent = false;
#pragma unroll
            for (u32 i = 0; i < VECTORS; i++) {
                more[i] = load_vector(from + i * 32 * WIDTH);
#pragma unroll
                for (int j = 0; j < WIDTH; j++)
                    absent |= more[i].word[j] == ABSENT;
            }
        } while (absent);
#pragma unroll
        for (int j = 0; j < WIDTH; j++)
            none.word[j] = ABSENT;
#pragma unroll
        for (u32 i = 0; i < VECTORS; i++) {
#pragma unroll
            for (int j = 0; j < WIDTH; j++)
                sums[i * WIDTH + j] += __uint_as_float(more[i].word[j]);
            *(Vector *)(from + i * 32 * WIDTH) = none;
        }
    }
}
