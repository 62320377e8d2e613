/* A stand-in for libcuda.so.1 of a driver for CUDA 12.8: it says its version, and that there is one GPU. */
#include <string.h>

int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuGetExportTable(void **table, const void *id) { return 500; }

int cuGetProcAddress(const char *name, void **found, int version, unsigned long flags) {
  *found = 0;
  if (!strcmp(name, "cuDriverGetVersion")) *found = cuDriverGetVersion;
  if (!strcmp(name, "cuInit")) *found = cuInit;
  if (!strcmp(name, "cuGetProcAddress")) *found = cuGetProcAddress;
  return *found ? 0 : 500;
}

int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long flags, void *status) {
  return cuGetProcAddress(name, found, version, flags);
}
