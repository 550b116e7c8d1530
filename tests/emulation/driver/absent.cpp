// Names that PyCUDA links and nothing of ours calls: they answer that they are not supported.
#include "state.h"

#define CIR_ABSENT(name) \
    CIR_API driver::Status name() { return driver::called(#name, [] { return driver::kNotSupported; }); }

CIR_ABSENT(cuArray3DCreate_v2) CIR_ABSENT(cuArray3DGetDescriptor_v2) CIR_ABSENT(cuArrayCreate_v2)
CIR_ABSENT(cuArrayDestroy) CIR_ABSENT(cuArrayGetDescriptor_v2) CIR_ABSENT(cuCtxAttach)
CIR_ABSENT(cuCtxDisablePeerAccess) CIR_ABSENT(cuCtxEnablePeerAccess) CIR_ABSENT(cuCtxGetCacheConfig)
CIR_ABSENT(cuCtxGetLimit) CIR_ABSENT(cuCtxGetSharedMemConfig) CIR_ABSENT(cuCtxSetCacheConfig)
CIR_ABSENT(cuCtxSetLimit) CIR_ABSENT(cuCtxSetSharedMemConfig) CIR_ABSENT(cuDeviceCanAccessPeer)
CIR_ABSENT(cuDeviceGetByPCIBusId) CIR_ABSENT(cuIpcCloseMemHandle) CIR_ABSENT(cuIpcGetEventHandle)
CIR_ABSENT(cuIpcGetMemHandle) CIR_ABSENT(cuIpcOpenEventHandle) CIR_ABSENT(cuIpcOpenMemHandle_v2) CIR_ABSENT(cuLaunch)
CIR_ABSENT(cuLaunchGrid) CIR_ABSENT(cuLaunchGridAsync) CIR_ABSENT(cuLinkAddData_v2) CIR_ABSENT(cuLinkAddFile_v2)
CIR_ABSENT(cuLinkComplete) CIR_ABSENT(cuLinkCreate_v2) CIR_ABSENT(cuLinkDestroy) CIR_ABSENT(cuMemAllocManaged)
CIR_ABSENT(cuMemAllocPitch_v2) CIR_ABSENT(cuMemcpy2DAsync_v2) CIR_ABSENT(cuMemcpy2DUnaligned_v2)
CIR_ABSENT(cuMemcpy2D_v2) CIR_ABSENT(cuMemcpy3DAsync_v2) CIR_ABSENT(cuMemcpy3DPeer) CIR_ABSENT(cuMemcpy3DPeerAsync)
CIR_ABSENT(cuMemcpy3D_v2) CIR_ABSENT(cuMemcpyAtoA_v2) CIR_ABSENT(cuMemcpyAtoD_v2) CIR_ABSENT(cuMemcpyAtoH_v2)
CIR_ABSENT(cuMemcpyDtoA_v2) CIR_ABSENT(cuMemcpyHtoA_v2) CIR_ABSENT(cuMemcpyPeer) CIR_ABSENT(cuMemcpyPeerAsync)
CIR_ABSENT(cuMemsetD2D16Async) CIR_ABSENT(cuMemsetD2D16_v2) CIR_ABSENT(cuMemsetD2D32Async)
CIR_ABSENT(cuMemsetD2D32_v2) CIR_ABSENT(cuMemsetD2D8Async) CIR_ABSENT(cuMemsetD2D8_v2)
CIR_ABSENT(cuModuleGetGlobal_v2) CIR_ABSENT(cuModuleGetSurfRef) CIR_ABSENT(cuModuleGetTexRef)
CIR_ABSENT(cuModuleLoad) CIR_ABSENT(cuParamSetSize) CIR_ABSENT(cuParamSetTexRef) CIR_ABSENT(cuParamSetf)
CIR_ABSENT(cuParamSeti) CIR_ABSENT(cuParamSetv) CIR_ABSENT(cuProfilerInitialize) CIR_ABSENT(cuProfilerStart)
CIR_ABSENT(cuProfilerStop) CIR_ABSENT(cuStreamAttachMemAsync) CIR_ABSENT(cuSurfRefGetArray)
CIR_ABSENT(cuSurfRefSetArray) CIR_ABSENT(cuTexRefCreate) CIR_ABSENT(cuTexRefDestroy)
CIR_ABSENT(cuTexRefGetAddressMode) CIR_ABSENT(cuTexRefGetAddress_v2) CIR_ABSENT(cuTexRefGetArray)
CIR_ABSENT(cuTexRefGetFilterMode) CIR_ABSENT(cuTexRefGetFlags) CIR_ABSENT(cuTexRefGetFormat)
CIR_ABSENT(cuTexRefSetAddress2D_v3) CIR_ABSENT(cuTexRefSetAddressMode) CIR_ABSENT(cuTexRefSetAddress_v2)
CIR_ABSENT(cuTexRefSetArray) CIR_ABSENT(cuTexRefSetFilterMode) CIR_ABSENT(cuTexRefSetFlags)
CIR_ABSENT(cuTexRefSetFormat)
