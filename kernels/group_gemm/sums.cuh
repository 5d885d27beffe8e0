/* Parts of sums between warps and blocks, and the output.

   Sums are [2 times 16 rows][TILES] quads of a lane, as mma leaves them: of rows g and g + 8 (g + 16, g + 24), tokens 2q
   and 2q + 1 of eight: row g: 0 and 1, row g + 8: 2 and 3. */

#define QUADS (2 * TILES)
#define ABSENT 0x80000000u /* not published: -0 is published as 0 */
#define PART (ROW_WARPS * QUADS * 128) /* words of a block's part of a tile */
#define GATHERED ((COLUMN_WARPS - 1) * PART * 4)

/* Column warps' sums, added up in their order by the first one. All threads. */
__device__ __forceinline__ void gather(float *sums, float4 *gathered)
{
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncthreads(); /* those of the tile before have been added up */
    if (warp >= ROW_WARPS)
#pragma unroll
        for (int i = 0; i < QUADS; i++)
            gathered[((warp - ROW_WARPS) * QUADS + i) * 32 + lane] =
                make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
    __syncthreads();
    if (warp < ROW_WARPS)
#pragma unroll
        for (int other = 0; other < COLUMN_WARPS - 1; other++)
#pragma unroll
            for (int i = 0; i < QUADS; i++) {
                float4 more = gathered[((other * ROW_WARPS + warp) * QUADS + i) * 32 + lane];
                sums[4 * i] += more.x;
                sums[4 * i + 1] += more.y;
                sums[4 * i + 2] += more.z;
                sums[4 * i + 3] += more.w;
            }
}

__device__ __forceinline__ u32 *place(const Arguments &it, u32 block)
{
    return it.sums + (u64)block * PART + (threadIdx.x / 32 * QUADS * 32 + threadIdx.x % 32) * 4;
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
    for (int i = 0; i < QUADS; i++)
        asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to + i * 128), "r"(published(sums[4 * i])),
                     "r"(published(sums[4 * i + 1])), "r"(published(sums[4 * i + 2])), "r"(published(sums[4 * i + 3]))
                     : "memory");
}

/* sums += the parts of the blocks from `first` to this one, in their order. Waits for them, and leaves their places
   ABSENT for the next product. */
__device__ __forceinline__ void collect(const Arguments &it, float *sums, u32 first)
{
    for (u32 block = first; block < blockIdx.x; block++) {
        u32 *from = place(it, block);
        uint4 more[QUADS]; /* read together: a part takes one trip to the L2 cache */
        bool absent;
        do {
            absent = false;
#pragma unroll
            for (u32 i = 0; i < QUADS; i++) {
                asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(more[i].x), "=r"(more[i].y), "=r"(more[i].z), "=r"(more[i].w)
                             : "l"(from + i * 128) : "memory");
                absent |= more[i].x == ABSENT || more[i].y == ABSENT || more[i].z == ABSENT || more[i].w == ABSENT;
            }
        } while (absent);
#pragma unroll
        for (u32 i = 0; i < QUADS; i++) {
            float *sum = sums + 4 * i;
            sum[0] += __uint_as_float(more[i].x);
            sum[1] += __uint_as_float(more[i].y);
            sum[2] += __uint_as_float(more[i].z);
            sum[3] += __uint_as_float(more[i].w);
            *(uint4 *)(from + i * 128) = make_uint4(ABSENT, ABSENT, ABSENT, ABSENT);
        }
    }
}

/* factor: of this lane's rows; numbers in the sums are 2^-24 of it too small. */
__device__ __forceinline__ void finish(const Arguments &it, u32 slab, const float *factor, const float *sums)
{
#pragma unroll
    for (int rows = 0; rows < 4; rows++) {
        u32 row = slab * SLAB + rows * 8 + threadIdx.x % 32 / 4;
        if (row >= it.rows)
            continue;
        float back = __uint_as_float((266u << 23) - __float_as_uint(factor[rows])); /* 2^12 / factor */
        float bias = BIAS == 3 ? 0.0f : read_number<BIAS>(it.bias, row);
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            u32 token = i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
            if (token >= it.tokens)
                continue;
            float out = sums[(rows / 2 * TILES + i / 2) * 4 + rows % 2 * 2 + i % 2] * it.back[token] * 4096.0f * back;
            write_number(it.out, (u64)token * it.rows + row, BIAS == 3 ? out : out + bias);
        }
    }
}
