/* A stand-in for libnvidia-ml.so.1 at its ABI, so that unmodified NVML clients (pynvml, gpustat, nvitop) run without a card.
 *
 * What the cards look like stands in a text file named by REMIT_NVML_STANDIN; it is read again whenever it changes, so a test can
 * break a card while a client watches. One `key value...` a line; `gpu` begins a card:
 *
 *     init 0                     what nvmlInit returns (9: driver not loaded)
 *     alive 0                    what nvmlDeviceGetCount returns (1: the driver was unloaded under us)
 *     stall_ms 0                 how long a utilization call hangs
 *     driver 570.86.15
 *     cuda 12080
 *     gpu
 *     name NVIDIA H200
 *     uuid GPU-0
 *     utilization 10 20 x e15    one value a call, over and over; `x`: not supported, `e15`: error 15
 *     lost_after 3               from the fourth utilization call on every call says "GPU is lost" (0: always)
 *     xid 79 31                  reported once each through an event set, in this order
 *     process 4711 1048576 C     pid, bytes (-1: not known), C(ompute) or G(raphics)
 *
 * A key that a card does not have is "not supported". Counters (calls made, XIDs told) outlive a change of the file.
 * REMIT_NVML_STANDIN_TRACE names a file that gets the name of each function once, when it is first called.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10, LOST = 15 };
enum { MISMATCH = 25 };

#define GPUS 16
#define METRICS 48
#define VALUES 256
#define PROCESSES 32
#define XIDS 64

typedef unsigned int u32;
typedef unsigned long long u64;

typedef struct {
  char key[32];
  long long value[VALUES];
  int error[VALUES];
  int values;
} metric_t;

typedef struct {
  u32 pid;
  long long bytes;
  char kind;
} process_t;

typedef struct {
  char name[96], uuid[96];
  metric_t metric[METRICS];
  int metrics;
  process_t process[PROCESSES];
  int processes;
  int xid[XIDS];
  int xids;
  long lost_after;
} gpu_t;

/* Counters of one card, which outlive a change of the file. */
typedef struct {
  char key[METRICS][32];
  u64 calls[METRICS];
  int keys;
  u64 looks;
  int xids_told;
  int gone;
} count_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static gpu_t gpu[GPUS];
static count_t count[GPUS];
static int gpus, init_returns, alive_returns, cuda, users;
static long stall_ms;
static char driver[80];
static struct stat seen;

typedef gpu_t *device_t;
typedef struct { int listens[GPUS]; } events_t;

static void parse(FILE *file) {
  char line[8192];
  gpu_t *g = NULL;
  memset(gpu, 0, sizeof gpu);
  gpus = init_returns = alive_returns = cuda = 0;
  stall_ms = 0;
  strcpy(driver, "0.0");
  while (fgets(line, sizeof line, file)) {
    char key[32];
    int at = 0;
    line[strcspn(line, "\r\n")] = 0;
    if (sscanf(line, " %31s %n", key, &at) < 1 || key[0] == '#') continue;
    char *rest = line + at;
    if (!strcmp(key, "gpu")) {
      if (gpus == GPUS) break;
      g = &gpu[gpus++];
      g->lost_after = -1;
    } else if (!strcmp(key, "init")) init_returns = atoi(rest);
    else if (!strcmp(key, "alive")) alive_returns = atoi(rest);
    else if (!strcmp(key, "stall_ms")) stall_ms = atol(rest);
    else if (!strcmp(key, "driver")) snprintf(driver, sizeof driver, "%.79s", rest);
    else if (!strcmp(key, "cuda")) cuda = atoi(rest);
    else if (!g) continue;
    else if (!strcmp(key, "name")) snprintf(g->name, sizeof g->name, "%.95s", rest);
    else if (!strcmp(key, "uuid")) snprintf(g->uuid, sizeof g->uuid, "%.95s", rest);
    else if (!strcmp(key, "lost_after")) g->lost_after = atol(rest);
    else if (!strcmp(key, "process") && g->processes < PROCESSES) {
      process_t *p = &g->process[g->processes];
      if (sscanf(rest, "%u %lld %c", &p->pid, &p->bytes, &p->kind) == 3) g->processes++;
    } else if (!strcmp(key, "xid")) {
      for (char *word = strtok(rest, " "); word && g->xids < XIDS; word = strtok(NULL, " ")) g->xid[g->xids++] = atoi(word);
    } else if (g->metrics < METRICS) {
      metric_t *m = &g->metric[g->metrics++];
      snprintf(m->key, sizeof m->key, "%s", key);
      for (char *word = strtok(rest, " "); word && m->values < VALUES; word = strtok(NULL, " ")) {
        int i = m->values++;
        if (word[0] == 'x') m->error[i] = NOT_SUPPORTED;
        else if (word[0] == 'e') m->error[i] = atoi(word + 1);
        else m->value[i] = atoll(word);
      }
    }
  }
}

static void reload(void) {
  struct stat now;
  const char *path = getenv("REMIT_NVML_STANDIN");
  if (!path || stat(path, &now)) return;
  if (now.st_ino == seen.st_ino && now.st_size == seen.st_size && now.st_mtim.tv_sec == seen.st_mtim.tv_sec &&
      now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec)
    return;
  FILE *file = fopen(path, "r");
  if (!file) return;
  seen = now;
  parse(file);
  fclose(file);
}

static void trace(const char *name) {
  static const char *told[128];
  static int tolds;
  const char *path = getenv("REMIT_NVML_STANDIN_TRACE");
  if (!path) return;
  for (int i = 0; i < tolds; i++)
    if (told[i] == name) return;
  if (tolds < 128) told[tolds++] = name;
  FILE *file = fopen(path, "a");
  if (!file) return;
  fprintf(file, "%s\n", name);
  fclose(file);
}

static int begin(const char *name) {
  pthread_mutex_lock(&lock);
  trace(name);
  reload();
  return users > 0 ? OK : UNINITIALIZED;
}

static int end(int result) {
  pthread_mutex_unlock(&lock);
  return result;
}

/* Once lost, a card stays lost until every client has shut NVML down, whatever the file says by then. */
static int lost(int i) {
  long after = gpu[i].lost_after;
  if (after == 0 || (after > 0 && count[i].looks > (u64)after)) count[i].gone = 1;
  return count[i].gone;
}

/* The state of a card before any of its calls; leaves its number in *i. */
static int card(device_t d, int *i) {
  *i = (int)(d - gpu);
  if (!d || *i < 0 || *i >= gpus) return INVALID;
  return lost(*i) ? LOST : OK;
}

static u64 *calls(int i, const char *key) {
  count_t *c = &count[i];
  for (int k = 0; k < c->keys; k++)
    if (!strcmp(c->key[k], key)) return &c->calls[k];
  if (c->keys == METRICS) return &c->calls[METRICS - 1];
  snprintf(c->key[c->keys], sizeof c->key[0], "%s", key);
  return &c->calls[c->keys++];
}

/* The next value of a card's series. */
static int next(int i, const char *key, long long *value) {
  for (int k = 0; k < gpu[i].metrics; k++) {
    metric_t *m = &gpu[i].metric[k];
    if (strcmp(m->key, key) || !m->values) continue;
    int at = (int)((*calls(i, key))++ % (u64)m->values);
    *value = m->value[at];
    return m->error[at];
  }
  return NOT_SUPPORTED;
}

static int value_of(const char *function, device_t d, const char *key, long long *value) {
  int i, result = begin(function);
  if (result == OK) result = card(d, &i);
  if (result == OK) result = next(i, key, value);
  return end(result);
}

#define SCALAR(function, key)                          \
  int function(device_t d, u32 *out) {                 \
    long long value = 0;                               \
    int result = value_of(#function, d, key, &value);  \
    if (result == OK) *out = (u32)value;               \
    return result;                                     \
  }

SCALAR(nvmlDeviceGetPowerUsage, "power_mw")
SCALAR(nvmlDeviceGetPowerManagementLimit, "power_limit_mw")
SCALAR(nvmlDeviceGetEnforcedPowerLimit, "power_limit_mw")
SCALAR(nvmlDeviceGetFanSpeed, "fan_pct")
SCALAR(nvmlDeviceGetPerformanceState, "pstate")
SCALAR(nvmlDeviceGetPersistenceMode, "persistence")
SCALAR(nvmlDeviceGetComputeMode, "compute_mode")
SCALAR(nvmlDeviceGetDisplayMode, "display_mode")
SCALAR(nvmlDeviceGetDisplayActive, "display_active")
SCALAR(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
SCALAR(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_generation")
SCALAR(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
SCALAR(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width")
SCALAR(nvmlDeviceGetMaxMigDeviceCount, "mig_devices_max")

/* -- the library itself */

int nvmlInitWithFlags(u32 flags) {
  (void)flags;
  begin("nvmlInitWithFlags");
  for (int i = 0; users == 0 && i < GPUS; i++) count[i].gone = 0;
  if (init_returns == OK) users++;
  return end(init_returns);
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
  int result = begin("nvmlShutdown");
  if (result == OK) users--;
  return end(result);
}

const char *nvmlErrorString(int code) {
  switch (code) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case NOT_SUPPORTED: return "Not Supported";
    case LOST: return "GPU is lost";
    default: return "Unknown Error";
  }
}

static int string_out(const char *function, const char *from, char *out, u32 size) {
  int result = begin(function);
  if (result == OK && strlen(from) >= size) result = TOO_SMALL;
  if (result == OK) strcpy(out, from);
  return end(result);
}

int nvmlSystemGetDriverVersion(char *out, u32 size) { return string_out("nvmlSystemGetDriverVersion", driver, out, size); }
int nvmlSystemGetNVMLVersion(char *out, u32 size) { return string_out("nvmlSystemGetNVMLVersion", driver, out, size); }

int nvmlSystemGetCudaDriverVersion_v2(int *out) {
  int result = begin("nvmlSystemGetCudaDriverVersion_v2");
  *out = cuda;
  return end(result);
}

int nvmlSystemGetCudaDriverVersion(int *out) { return nvmlSystemGetCudaDriverVersion_v2(out); }

int nvmlDeviceGetCount_v2(u32 *out) {
  int result = begin("nvmlDeviceGetCount_v2");
  *out = (u32)gpus;
  return end(result == OK ? alive_returns : result);
}

/* -- which card */

int nvmlDeviceGetHandleByIndex_v2(u32 index, device_t *out) {
  int result = begin("nvmlDeviceGetHandleByIndex_v2");
  if (result == OK && index >= (u32)gpus) result = INVALID;
  if (result == OK && lost((int)index)) result = LOST;
  if (result == OK) *out = &gpu[index];
  return end(result);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t *out) {
  int result = begin("nvmlDeviceGetHandleByUUID");
  if (result == OK) result = NOT_FOUND;
  for (int i = 0; result == NOT_FOUND && i < gpus; i++)
    if (!strcmp(gpu[i].uuid, uuid)) *out = &gpu[i], result = lost(i) ? LOST : OK;
  return end(result);
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, device_t *out) {
  u32 domain, bus;
  int result = begin("nvmlDeviceGetHandleByPciBusId_v2");
  if (result == OK && (sscanf(bus_id, "%x:%x", &domain, &bus) != 2 || bus < 1 || bus > (u32)gpus)) result = NOT_FOUND;
  if (result == OK) *out = &gpu[bus - 1];
  return end(result);
}

int nvmlDeviceGetIndex(device_t d, u32 *out) {
  int i, result = begin("nvmlDeviceGetIndex");
  if (result == OK) result = card(d, &i);
  if (result == OK) *out = (u32)i;
  return end(result);
}

static int card_string(const char *function, device_t d, size_t offset, char *out, u32 size) {
  int i, result = begin(function);
  if (result == OK) result = card(d, &i);
  const char *from = (const char *)d + offset;
  if (result == OK && !*from) result = NOT_SUPPORTED;
  if (result == OK && strlen(from) >= size) result = TOO_SMALL;
  if (result == OK) strcpy(out, from);
  return end(result);
}

int nvmlDeviceGetName(device_t d, char *out, u32 size) {
  return card_string("nvmlDeviceGetName", d, __builtin_offsetof(gpu_t, name), out, size);
}
int nvmlDeviceGetUUID(device_t d, char *out, u32 size) {
  return card_string("nvmlDeviceGetUUID", d, __builtin_offsetof(gpu_t, uuid), out, size);
}
int nvmlDeviceGetSerial(device_t d, char *out, u32 size) {
  long long none;
  (void)out, (void)size;
  return value_of("nvmlDeviceGetSerial", d, "serial", &none) == LOST ? LOST : NOT_SUPPORTED;
}

typedef struct {
  char legacy_id[16];
  u32 domain, bus, device, device_id, subsystem_id;
  char id[32];
} pci_t;

int nvmlDeviceGetPciInfo_v3(device_t d, pci_t *out) {
  int i, result = begin("nvmlDeviceGetPciInfo_v3");
  if (result == OK) result = card(d, &i);
  if (result == OK) {
    memset(out, 0, sizeof *out);
    out->bus = (u32)i + 1;
    out->device_id = 0x233510de;
    snprintf(out->legacy_id, sizeof out->legacy_id, "0000:%02X:00.0", out->bus & 255);
    snprintf(out->id, sizeof out->id, "00000000:%02X:00.0", out->bus & 255);
  }
  return end(result);
}

/* -- how it is */

typedef struct { u64 total, free, used; } memory_t;
typedef struct { u32 version; u64 total, reserved, free, used; } memory_v2_t;

static int memory(const char *function, device_t d, long long *total, long long *used, long long *reserved) {
  int i, result = begin(function);
  if (result == OK) result = card(d, &i);
  if (result == OK) result = next(i, "memory_total", total);
  if (result == OK) result = next(i, "memory_used", used);
  if (result == OK && next(i, "memory_reserved", reserved) != OK) *reserved = 0;
  return end(result);
}

int nvmlDeviceGetMemoryInfo_v2(device_t d, memory_v2_t *out) {
  long long total, used, reserved;
  if (out->version != (sizeof *out | 2u << 24)) return MISMATCH;
  int result = memory("nvmlDeviceGetMemoryInfo_v2", d, &total, &used, &reserved);
  if (result == OK) out->total = total, out->used = used, out->reserved = reserved, out->free = total - used - reserved;
  return result;
}

/* The older form counts what the driver reserves as used. */
int nvmlDeviceGetMemoryInfo(device_t d, memory_t *out) {
  long long total, used, reserved;
  int result = memory("nvmlDeviceGetMemoryInfo", d, &total, &used, &reserved);
  if (result == OK) out->total = total, out->used = used + reserved, out->free = total - used - reserved;
  return result;
}

int nvmlDeviceGetBAR1MemoryInfo(device_t d, memory_t *out) {
  long long size;
  int result = value_of("nvmlDeviceGetBAR1MemoryInfo", d, "bar1_total", &size);
  if (result == OK) out->total = out->free = size, out->used = 0;
  return result;
}

typedef struct { u32 gpu, memory; } rates_t;

int nvmlDeviceGetUtilizationRates(device_t d, rates_t *out) {
  long long busy = 0, memory_busy = 0;
  int i, result = begin("nvmlDeviceGetUtilizationRates");
  long stall = stall_ms;
  if (result == OK) result = card(d, &i);
  if (result == OK) {
    count[i].looks++;
    result = lost(i) ? LOST : next(i, "utilization", &busy);
    if (next(i, "utilization_memory", &memory_busy) != OK) memory_busy = 0;
  }
  if (result == OK) out->gpu = (u32)busy, out->memory = (u32)memory_busy;
  end(result);
  if (stall) usleep((useconds_t)stall * 1000);
  return result;
}

static int with_period(const char *function, device_t d, const char *key, u32 *out, u32 *period_us) {
  long long value = 0;
  int result = value_of(function, d, key, &value);
  if (result == OK) *out = (u32)value, *period_us = 167000;
  return result;
}

int nvmlDeviceGetEncoderUtilization(device_t d, u32 *out, u32 *period_us) {
  return with_period("nvmlDeviceGetEncoderUtilization", d, "encoder", out, period_us);
}
int nvmlDeviceGetDecoderUtilization(device_t d, u32 *out, u32 *period_us) {
  return with_period("nvmlDeviceGetDecoderUtilization", d, "decoder", out, period_us);
}

int nvmlDeviceGetTemperature(device_t d, int sensor, u32 *out) {
  long long value = 0;
  int result = sensor ? INVALID : value_of("nvmlDeviceGetTemperature", d, "temperature", &value);
  if (result == OK) *out = (u32)value;
  return result;
}

typedef struct { u32 version; int sensor, temperature; } temperature_t;

int nvmlDeviceGetTemperatureV(device_t d, temperature_t *io) {
  long long value = 0;
  if (io->version != (sizeof *io | 1u << 24)) return MISMATCH;
  int result = io->sensor ? INVALID : value_of("nvmlDeviceGetTemperatureV", d, "temperature", &value);
  if (result == OK) io->temperature = (int)value;
  return result;
}

static int clock_of(const char *function, device_t d, int kind, const char *suffix, u32 *out) {
  static const char *const kinds[] = {"graphics", "sm", "memory", "video"};
  char key[32];
  long long value = 0;
  if (kind < 0 || kind > 3) return INVALID;
  snprintf(key, sizeof key, "clock_%s%s", kinds[kind], suffix);
  int result = value_of(function, d, key, &value);
  if (result == OK) *out = (u32)value;
  return result;
}

int nvmlDeviceGetClockInfo(device_t d, int kind, u32 *out) { return clock_of("nvmlDeviceGetClockInfo", d, kind, "", out); }
int nvmlDeviceGetMaxClockInfo(device_t d, int kind, u32 *out) {
  return clock_of("nvmlDeviceGetMaxClockInfo", d, kind, "_max", out);
}

static int mask_of(const char *function, device_t d, u64 *out) {
  long long value = 0;
  int result = value_of(function, d, "throttle", &value);
  if (result == OK) *out = (u64)value;
  return result;
}

int nvmlDeviceGetCurrentClocksEventReasons(device_t d, u64 *out) {
  return mask_of("nvmlDeviceGetCurrentClocksEventReasons", d, out);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(device_t d, u64 *out) {
  return mask_of("nvmlDeviceGetCurrentClocksThrottleReasons", d, out);
}

int nvmlDeviceGetMigMode(device_t d, u32 *current, u32 *pending) {
  long long value = 0;
  int result = value_of("nvmlDeviceGetMigMode", d, "mig", &value);
  if (result == OK) *current = *pending = (u32)value;
  return result;
}

int nvmlDeviceIsMigDeviceHandle(device_t d, u32 *out) {
  int i, result = begin("nvmlDeviceIsMigDeviceHandle");
  if (result == OK) result = card(d, &i);
  *out = 0;
  return end(result);
}

int nvmlDeviceGetTotalEccErrors(device_t d, int kind, int counter, u64 *out) {
  long long value = 0;
  (void)counter;
  int result = value_of("nvmlDeviceGetTotalEccErrors", d, kind ? "ecc_uncorrected" : "ecc_corrected", &value);
  if (result == OK) *out = (u64)value;
  return result;
}

/* The real one measures for 20 ms; so does this, for a client that calls it in its loop should feel it. */
int nvmlDeviceGetPcieThroughput(device_t d, int counter, u32 *out) {
  long long value = 0;
  (void)counter;
  int result = value_of("nvmlDeviceGetPcieThroughput", d, "pcie_kib_s", &value);
  usleep(20000);
  if (result == OK) *out = (u32)value;
  return result;
}

int nvmlDeviceGetCudaComputeCapability(device_t d, int *major, int *minor) {
  long long value = 0;
  int result = value_of("nvmlDeviceGetCudaComputeCapability", d, "compute_capability", &value);
  if (result == OK) *major = (int)value / 10, *minor = (int)value % 10;
  return result;
}

int nvmlDeviceGetDriverModel_v2(device_t d, int *current, int *pending) {
  int i, result = begin("nvmlDeviceGetDriverModel_v2");
  (void)current, (void)pending;
  if (result == OK) result = card(d, &i);
  return end(result == OK ? NOT_SUPPORTED : result);
}

typedef struct {
  u32 id, scope;
  long long at, latency;
  int type, result;
  u64 value;
} field_t;

int nvmlDeviceGetFieldValues(device_t d, int n, field_t *fields) {
  int i, result = begin("nvmlDeviceGetFieldValues");
  if (result == OK) result = card(d, &i);
  for (int f = 0; result == OK && f < n; f++) fields[f].result = NOT_SUPPORTED;
  return end(result);
}

/* -- who uses it */

typedef struct { u32 pid; u64 bytes; u32 gpu_instance, compute_instance; } process_info_t;

static int processes(const char *function, device_t d, char kind, u32 *n, process_info_t *out) {
  int i, result = begin(function);
  if (result == OK) result = card(d, &i);
  if (result != OK) return end(result);
  u32 found = 0;
  for (int p = 0; p < gpu[i].processes; p++) {
    process_t *from = &gpu[i].process[p];
    if (from->kind != kind) continue;
    if (out && found < *n) out[found] = (process_info_t){from->pid, (u64)from->bytes, 0xffffffffu, 0xffffffffu};
    found++;
  }
  result = found > (out ? *n : 0) ? TOO_SMALL : OK;
  *n = found;
  return end(result);
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t d, u32 *n, process_info_t *out) {
  return processes("nvmlDeviceGetComputeRunningProcesses_v3", d, 'C', n, out);
}
int nvmlDeviceGetComputeRunningProcesses_v2(device_t d, u32 *n, process_info_t *out) {
  return processes("nvmlDeviceGetComputeRunningProcesses_v2", d, 'C', n, out);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t d, u32 *n, process_info_t *out) {
  return processes("nvmlDeviceGetGraphicsRunningProcesses_v3", d, 'G', n, out);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t d, u32 *n, process_info_t *out) {
  return processes("nvmlDeviceGetMPSComputeRunningProcesses_v3", d, 'M', n, out);
}

int nvmlDeviceGetProcessUtilization(device_t d, void *out, u32 *n, u64 since) {
  int i, result = begin("nvmlDeviceGetProcessUtilization");
  (void)out, (void)since;
  if (result == OK) result = card(d, &i);
  *n = 0;
  return end(result == OK ? NOT_FOUND : result);
}

/* -- what happened to it */

typedef struct { device_t device; u64 type, data; u32 gpu_instance, compute_instance; } event_t;

int nvmlEventSetCreate(events_t **out) {
  int result = begin("nvmlEventSetCreate");
  if (result == OK) *out = calloc(1, sizeof **out);
  return end(result);
}

int nvmlEventSetFree(events_t *set) {
  int result = begin("nvmlEventSetFree");
  free(set);
  return end(result);
}

/* Only a card with `xid_events 1` tells XIDs. */
int nvmlDeviceGetSupportedEventTypes(device_t d, u64 *out) {
  int i, result = begin("nvmlDeviceGetSupportedEventTypes");
  if (result == OK) result = card(d, &i);
  long long supported = 0;
  if (result == OK && next(i, "xid_events", &supported) != OK) supported = 0;
  if (result == OK) *out = supported ? 8 : 0;
  return end(result);
}

int nvmlDeviceRegisterEvents(device_t d, u64 types, events_t *set) {
  int i, result = begin("nvmlDeviceRegisterEvents");
  if (result == OK) result = card(d, &i);
  if (result == OK) set->listens[i] |= types & 8 ? 1 : 0;
  return end(result);
}

int nvmlEventSetWait_v2(events_t *set, event_t *out, u32 timeout_ms) {
  int result = begin("nvmlEventSetWait_v2");
  for (int i = 0; result == OK && i < gpus; i++) {
    if (!set->listens[i] || count[i].xids_told >= gpu[i].xids) continue;
    *out = (event_t){&gpu[i], 8, (u64)gpu[i].xid[count[i].xids_told++], 0xffffffffu, 0xffffffffu};
    return end(OK);
  }
  end(result);
  if (result == OK) usleep(timeout_ms * 1000), result = TIMEOUT;
  return result;
}
