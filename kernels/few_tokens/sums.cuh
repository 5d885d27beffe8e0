/* Parts of sums between blocks, and the output: scales and bias. */

#define ABSENT ((int)0x80000000) /* not published: no sum is this, as INT8 sums are smaller, and -0 is published as 0 */
#define SUM_STRIDE (TILE_ROWS + 4) /* of a token: every lane of a warp has a bank of its own */
#define GATHERED (COLUMN_GROUPS * TOKENS * SUM_STRIDE * 4)
#define PART (it.tokens * TILE_ROWS) /* sums of a part: [tokens][TILE_ROWS] */
#define ROW_QUADS (TILE_ROWS / 4)

/* The parts of the tile whose first unit is at a place of the order, one for each block that has units of it, and which
   of them is this block's. */
struct Parts {
    u32 own, count, first_block;

    __device__ __forceinline__ Parts(const Arguments &it, u32 start)
    {
        u32 total = it.tiles * it.units;
        u32 last = ((start + it.units) * gridDim.x - 1) / total;
        first_block = ((start + 1) * gridDim.x - 1) / total;
        own = blockIdx.x - first_block;
        count = last - first_block + 1;
    }

    /* Where a part is published. A block begins within one tile at most: that part, which is not the tile's first, has the
       block's own place. First parts have the places behind those: one tile at most begins in a block and ends in another. */
    __device__ __forceinline__ Sum *place(const Arguments &it, u32 part) const
    {
        return it.sums + (first_block + (part == 0 ? gridDim.x : part)) * PART;
    }
};

/* ---- output: (sum * scale) * weight_scale + bias, each operation rounded */

__device__ __forceinline__ float scaled(Sum sum, float scale, float weight_scale, float bias)
{
    float out = __fmul_rn(__fmul_rn((float)sum, scale), weight_scale);
    return BIAS == 3 ? out : __fadd_rn(out, bias);
}

__device__ __forceinline__ float weight_scale_of(const Arguments &it, u32 row)
{
    return row < it.rows ? it.weight_scale[row] : 0.0f;
}

__device__ __forceinline__ float bias_of(const Arguments &it, u32 row)
{
    return BIAS == 3 || row >= it.rows ? 0.0f : read_number<BIAS>(it.bias, row);
}

__device__ __forceinline__ void write(const Arguments &it, u32 token, u32 row, float value)
{
    if (row >= it.rows)
        return;
    u64 at = (u64)token * it.rows + row;
    if (X == 2)
        ((float *)it.out)[at] = value;
    else
        ((u16 *)it.out)[at] = narrow(value);
}

/* ---- parts */

__device__ __forceinline__ void publish(Sum *to, Quad quad)
{
    int bits[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        bits[i] = as_bits(quad.sum[i]);
        if (FLOAT && bits[i] == ABSENT)
            bits[i] = 0;
    }
    asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(bits[0]), "r"(bits[1]),
                 "r"(bits[2]), "r"(bits[3]) : "memory");
}

/* Quads first, first + THREADS … below `end` of all parts, added up in the order of the parts. Waits for them, and leaves
   their places ABSENT for the next product. */
template <int QUADS>
__device__ __forceinline__ void collect(const Arguments &it, Quad *out, const Parts &parts, u32 first, u32 end)
{
    const u32 AT_ONCE = 4; /* parts that are read together: all, as a rule */
#pragma unroll
    for (int i = 0; i < QUADS; i++)
        out[i] = Quad{{0, 0, 0, 0}};
    for (u32 part = 0; part < parts.count; part += AT_ONCE) {
        int4 more[AT_ONCE][QUADS];
        bool absent;
        do {
            absent = false;
#pragma unroll
            for (u32 j = 0; j < AT_ONCE; j++)
#pragma unroll
                for (u32 i = 0; i < QUADS; i++) {
                    int4 &one = more[j][i];
                    one = make_int4(0, 0, 0, 0);
                    if (part + j < parts.count && first + i * THREADS < end)
                        asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                                     : "=r"(one.x), "=r"(one.y), "=r"(one.z), "=r"(one.w)
                                     : "l"(parts.place(it, part + j) + (first + i * THREADS) * 4) : "memory");
                }
#pragma unroll
            for (u32 j = 0; j < AT_ONCE; j++)
#pragma unroll
                for (u32 i = 0; i < QUADS; i++) {
                    int4 one = more[j][i];
                    absent |= one.x == ABSENT || one.y == ABSENT || one.z == ABSENT || one.w == ABSENT;
                }
        } while (absent);
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++)
#pragma unroll
            for (u32 i = 0; i < QUADS; i++) {
                int4 one = more[j][i];
                out[i].sum[0] += as_sum(one.x);
                out[i].sum[1] += as_sum(one.y);
                out[i].sum[2] += as_sum(one.z);
                out[i].sum[3] += as_sum(one.w);
                if (part + j < parts.count && first + i * THREADS < end)
                    *(int4 *)(parts.place(it, part + j) + (first + i * THREADS) * 4) =
                        make_int4(ABSENT, ABSENT, ABSENT, ABSENT);
            }
    }
}

/* Scales and biases of four rows. */
struct Rows {
    float weight_scale[4], bias[4];

    __device__ __forceinline__ Rows(const Arguments &it, u32 row)
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            weight_scale[i] = weight_scale_of(it, row + i);
            bias[i] = bias_of(it, row + i);
        }
    }
};

__device__ __forceinline__ void finish(const Arguments &it, const Rows &rows, float scale, u32 token, u32 row, Quad quad)
{
    float out[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        out[i] = scaled(quad.sum[i], scale, rows.weight_scale[i], rows.bias[i]);
    if (X != 2 && it.rows % 4 == 0) {
        if (row < it.rows)
            *(uint2 *)((u16 *)it.out + (u64)token * it.rows + row) =
                make_uint2(narrow(out[0]) | (u32)narrow(out[1]) << 16, narrow(out[2]) | (u32)narrow(out[3]) << 16);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        write(it, token, row + i, out[i]);
}

/* The sums of a block go to shared memory, where those of warpgroups that took turns are added up: from there
   neighbouring threads write neighbouring rows. */
__device__ __forceinline__ void gather(const Sum *sums, Sum *gathered)
{
    u32 lane = threadIdx.x % 32, group = threadIdx.x / 128;
    Sum *own = gathered + group / ROW_GROUPS * TOKENS * SUM_STRIDE + group % ROW_GROUPS * ROWS +
               threadIdx.x / 32 % 4 * SLAB_ROWS + lane / 4;
#pragma unroll
    for (int i = 0; i < 4 * TILES; i++)
        own[(i / 4 * 8 + lane % 4 * 2 + i % 2) * SUM_STRIDE + i / 2 % 2 * 8] = sums[i];
}

#if CLUSTER
/* Write a tile that the blocks of this cluster have among them. gathered: where nothing is copied to any more; the others
   read it, and each writes its share of the tokens. */
__device__ __forceinline__ void deliver(const Arguments &it, u32 tile, const Sum *sums, Sum *gathered)
{
    const u32 WRITERS = THREADS / ROW_QUADS * ROW_QUADS; /* threads of whole tokens: each has the same rows of all */
    const u32 EACH = (TOKENS * ROW_QUADS + WRITERS * CLUSTER - 1) / (WRITERS * CLUSTER);
    __syncthreads(); /* all that lay there has been multiplied */
    u32 thread = threadIdx.x;
#if SLABS
    asm volatile("" : "+r"(thread)); /* so that addresses do not take registers of the loop before */
    Slabs own(it);
    if (thread / 32 < own.count)
        gather(sums, gathered);
    u32 quad_row = thread % ROW_QUADS * 4, row = own.first * SLAB_ROWS + quad_row;
    bool writes = thread < WRITERS && quad_row < own.count * SLAB_ROWS;
#else
    gather(sums, gathered);
    u32 quad_row = threadIdx.x % ROW_QUADS * 4, row = tile * TILE_ROWS + quad_row;
    const bool writes = true;
#endif
    Rows rows(it, row);
#if CLUSTER > 1
    leave_to_cluster();
    wait_for_cluster();
#else
    __syncthreads();
#endif
#pragma unroll
    for (u32 n = 0; n < EACH; n++) {
        u32 i = (n * CLUSTER + blockIdx.x % CLUSTER) * WRITERS + thread, token = i / ROW_QUADS;
        if (!writes || i >= it.tokens * ROW_QUADS)
            continue;
        u32 at = address(gathered + token * SUM_STRIDE + quad_row);
        Four parts[CLUSTER];
#pragma unroll
        for (u32 part = 0; part < CLUSTER; part++)
#if CLUSTER > 1
            parts[part] = load_from(part, at);
#else
            parts[part] = load(at);
#endif
        Quad quad = {{0, 0, 0, 0}};
#pragma unroll
        for (u32 part = 0; part < CLUSTER; part++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                quad.sum[k] += as_sum(parts[part].word[k]);
        finish(it, rows, it.scale[token], token, row, quad);
    }
#if CLUSTER > 1
    leave_to_cluster(); /* what this block read */
#endif
}
#else
__device__ __forceinline__ void deliver(const Arguments &it, u32 tile, Parts parts, const Sum *sums, Sum *gathered)
{
    gather(sums, gathered);
    __syncthreads();
    u32 quad_row = threadIdx.x % ROW_QUADS * 4, row = tile * TILE_ROWS + quad_row;
    Rows rows(it, row);
    for (u32 i = threadIdx.x; i < it.tokens * ROW_QUADS; i += THREADS) {
        u32 token = i / ROW_QUADS;
        Quad quad = {{0, 0, 0, 0}};
#pragma unroll
        for (int g = 0; g < COLUMN_GROUPS; g++) {
            Quad more = *(Quad *)(gathered + (g * TOKENS + token) * SUM_STRIDE + quad_row);
#pragma unroll
            for (int k = 0; k < 4; k++)
                quad.sum[k] += more.sum[k];
        }
        if (parts.count == 1)
            finish(it, rows, it.scale[token], token, row, quad);
        else
            publish(parts.place(it, parts.own) + i * 4, quad);
    }
    __syncthreads();
}

__device__ __forceinline__ void finish_parts(const Arguments &it, u32 tile, Parts parts)
{
    const int EACH = TOKENS * ROW_QUADS / THREADS, QUADS = EACH < 2 ? 1 : EACH < 4 ? 2 : 4;
    u32 row = tile * TILE_ROWS + threadIdx.x % ROW_QUADS * 4, end = it.tokens * ROW_QUADS;
    Rows rows(it, row); /* before the sums are waited for */
    for (u32 first = threadIdx.x; first < end; first += THREADS * QUADS) {
        float scales[QUADS];
        Quad quads[QUADS];
#pragma unroll
        for (int i = 0; i < QUADS; i++)
            scales[i] = first + i * THREADS < end ? it.scale[(first + i * THREADS) / ROW_QUADS] : 0.0f;
        collect<QUADS>(it, quads, parts, first, end);
#pragma unroll
        for (int i = 0; i < QUADS; i++)
            if (first + i * THREADS < end)
                finish(it, rows, scales[i], (first + i * THREADS) / ROW_QUADS, row, quads[i]);
    }
}
#endif
