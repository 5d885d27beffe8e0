/* Numbers, copies and launches: what the kernels that NVRTC compiles have in common. */

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

#define TOKENS (8 * TILES)

struct alignas(16) Four { u32 word[4]; };

/* ---- numbers */

__device__ __forceinline__ float half_float(u16 half)
{
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(half));
    return out;
}

template <int KIND> __device__ __forceinline__ float read_number(const void *from, u64 at)
{
    if (KIND == 0)
        return __uint_as_float((u32)((const u16 *)from)[at] << 16);
    return KIND == 1 ? half_float(((const u16 *)from)[at]) : ((const float *)from)[at];
}

/* ---- launches that overlap */

__device__ __forceinline__ void wait_for_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_begin()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* ---- copies to shared memory */

__device__ __forceinline__ u32 address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

__device__ __forceinline__ Four load(u32 at)
{
    Four out;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.word[0]), "=r"(out.word[1]), "=r"(out.word[2]), "=r"(out.word[3]) : "r"(at));
    return out;
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING> __device__ __forceinline__ void wait_copies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* ---- clusters: blocks that read each other's shared memory */

#if CLUSTER > 1
#define IN_CLUSTERS __cluster_dims__(CLUSTER)

__device__ __forceinline__ void leave_to_cluster() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }

__device__ __forceinline__ void wait_for_cluster() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

/* To the shared memory of a block of this cluster, where this block has `at`. */
__device__ __forceinline__ void store_to(u32 block, u32 at, u32 word)
{
    asm volatile("{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; st.shared::cluster.b32 [there], %2;}" ::"r"(at),
                 "r"(block), "r"(word) : "memory");
}

/* 16 bytes of the shared memory of a block of this cluster, where this block has `at`. */
__device__ __forceinline__ Four load_from(u32 block, u32 at)
{
    Four out;
    asm volatile("{.reg .b32 there; mapa.shared::cluster.u32 there, %4, %5;"
                 "ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [there];}"
                 : "=r"(out.word[0]), "=r"(out.word[1]), "=r"(out.word[2]), "=r"(out.word[3]) : "r"(at), "r"(block)
                 : "memory");
    return out;
}
#else
#define IN_CLUSTERS
#endif
