/* A stand-in for libcuda.so.1 whose GPU is the processor: what it launches is the kernel of crop_kernel.py, compiled
   from the same source (KERNEL) as C. It reads the arguments as CUDA does, by their addresses. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

#define __global__
static struct { unsigned x, y; } blockIdx, blockDim, threadIdx;
#include KERNEL

int cuModuleLoadData(void **module, const char *code) {
  *module = &blockIdx;
  return memcmp(code, "\177ELF", 4) ? 200 : 0; /* CUDA_ERROR_INVALID_IMAGE */
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = crop;
  return module == &blockIdx && !strcmp(name, "crop") ? 0 : 500; /* CUDA_ERROR_NOT_FOUND */
}

int cuLaunchKernel(void *function, unsigned blocks, unsigned images, unsigned one, unsigned threads, unsigned y,
                   unsigned z, unsigned shared, void *stream, void **arguments, void **extra) {
  if (function != crop || one != 1 || y != 1 || z != 1 || threads > 1024 || shared || extra) return 1;
  blockDim.x = threads;
  for (blockIdx.y = 0; blockIdx.y < images; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
      for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
        crop(*(void **)arguments[0], *(void **)arguments[1], *(void **)arguments[2], *(void **)arguments[3],
             *(int *)arguments[4], *(int *)arguments[5]);
  return 0;
}

int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long flags, void *status) {
  *found = dlsym(dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD), name);
  return *found ? 0 : 500;
}

int cuGetProcAddress(const char *name, void **found, int version, unsigned long flags) {
  return cuGetProcAddress_v2(name, found, version, flags, 0);
}
