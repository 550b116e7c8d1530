/* Stands where TensorRT 11's Python binding looks for libnvinfer, libnvonnxparser and libnvinfer_plugin, and
 * passes its calls on to TensorRT for RTX, whose interface is the same and whose compiler needs no GPU.
 * Each library refuses callers of another version than its own, so each is told its own. Plugins are not
 * among what it has: the graphs of a bundle use none. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void *find(const char *library, const char *function) {
  char path[4096];
  const char *folder = getenv("CIR_TENSORRT_RTX");
  snprintf(path, sizeof path, "%s/%s", folder ? folder : ".", library);
  void *loaded = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  void *found = loaded ? dlsym(loaded, function) : NULL;
  if (!found) {
    fprintf(stderr, "%s\n", dlerror());
    abort();
  }
  return found;
}

static void *of_core(const char *function) { return find("libtensorrt_rtx.so.1", function); }
static void *of_parser(const char *function) { return find("libtensorrt_onnxparser_rtx.so.1", function); }
static int version(void) { return ((int (*)(void))of_core("getInferLibVersion"))(); }

void *createInferBuilder_INTERNAL(void *log, int asked) {
  (void)asked;
  return ((void *(*)(void *, int))of_core("createInferBuilder_INTERNAL"))(log, version());
}
void *createInferRuntime_INTERNAL(void *log, int asked) {
  (void)asked;
  return ((void *(*)(void *, int))of_core("createInferRuntime_INTERNAL"))(log, version());
}
void *createInferRefitter_INTERNAL(void *engine, void *log, int asked) {
  (void)asked;
  return ((void *(*)(void *, void *, int))of_core("createInferRefitter_INTERNAL"))(engine, log, version());
}
void *createNvOnnxParser_INTERNAL(void *network, void *log, int asked) {
  (void)asked;
  return ((void *(*)(void *, void *, int))of_parser("createNvOnnxParser_INTERNAL"))(network, log, version());
}
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *log, int asked) {
  (void)asked;
  return ((void *(*)(void *, void *, int))of_parser("createNvOnnxParserRefitter_INTERNAL"))(refitter, log,
                                                                                           version());
}
int getNvOnnxParserVersion(void) { return ((int (*)(void))of_parser("getNvOnnxParserVersion"))(); }
void *getPluginRegistry(void) { return ((void *(*)(void))of_core("getPluginRegistry"))(); }
void *getBuilderPluginRegistry(int kind) {
  return ((void *(*)(int))of_core("getBuilderPluginRegistry"))(kind);
}
_Bool initLibNvInferPlugins(void *log, const char *space) {
  (void)log;
  (void)space;
  return 1;
}
