/* The part of ONNX Runtime's C ABI that a custom operator needs: a table of functions that only ever grows at its end,
 * and a description of an operator, read up to the version that it names. Places are those of version 17, ONNX Runtime
 * 1.17; https://onnxruntime.ai/docs/api/c/struct_ort_api.html and struct_ort_custom_op.html say what each does. */
#ifndef LEPTON_ABI_H
#define LEPTON_ABI_H

#include <stddef.h>
#include <stdint.h>

#define ABI_VERSION 17

typedef struct Status Status; /* null is success */
typedef struct Opaque Opaque; /* whatever ONNX Runtime hands out: a context, a value, a domain */
typedef void (*Function)(void);
typedef const Function *Api;

typedef struct {
    Api (*get_api)(uint32_t version);
    const char *(*version)(void);
} ApiBase;

enum { /* places in the table */
    CREATE_STATUS = 0,
    CREATE_CUSTOM_OP_DOMAIN = 26,
    CUSTOM_OP_DOMAIN_ADD = 27,
    ADD_CUSTOM_OP_DOMAIN = 28,
    GET_TENSOR_MUTABLE_DATA = 51,
    GET_TENSOR_ELEMENT_TYPE = 60,
    GET_DIMENSIONS_COUNT = 61,
    GET_DIMENSIONS = 62,
    GET_TENSOR_TYPE_AND_SHAPE = 65,
    KERNEL_INFO_GET_ATTRIBUTE_FLOAT = 85,
    KERNEL_INFO_GET_ATTRIBUTE_INT64 = 86,
    KERNEL_CONTEXT_GET_INPUT_COUNT = 88,
    KERNEL_CONTEXT_GET_INPUT = 90,
    KERNEL_CONTEXT_GET_OUTPUT = 91,
    RELEASE_STATUS = 93,
    RELEASE_TENSOR_TYPE_AND_SHAPE = 99,
    KERNEL_INFO_GET_INPUT_NAME = 232,
    GET_SESSION_CONFIG_ENTRY = 238,
    KERNEL_INFO_GET_CONSTANT_INPUT = 249,
    KERNEL_CONTEXT_PARALLEL_FOR = 274,
};

enum { FAIL = 1, INVALID_ARGUMENT = 2 };                       /* error codes */
enum { FLOAT = 1, UINT8 = 2, INT8 = 3, INT32 = 6, INT64 = 7 }; /* types of elements */
enum { REQUIRED = 0, OPTIONAL = 1 };                           /* inputs and outputs */

typedef struct CustomOp {
    uint32_t version;
    Function create_kernel; /* create replaces it since version 16 */
    const char *(*name)(const struct CustomOp *);
    const char *(*provider)(const struct CustomOp *);
    int (*input_type)(const struct CustomOp *, size_t);
    size_t (*input_count)(const struct CustomOp *);
    int (*output_type)(const struct CustomOp *, size_t);
    size_t (*output_count)(const struct CustomOp *);
    Function compute_kernel; /* compute replaces it since version 16 */
    void (*destroy)(void *kernel);
    int (*input_kind)(const struct CustomOp *, size_t);
    int (*output_kind)(const struct CustomOp *, size_t);
    int (*input_memory)(const struct CustomOp *, size_t);
    int (*variadic[4])(const struct CustomOp *);
    Status *(*create)(const struct CustomOp *, Api, const Opaque *info, void **kernel);
    Status *(*compute)(void *kernel, Opaque *context);
    Function infer_shapes;
    int (*start_version)(const struct CustomOp *);
    int (*end_version)(const struct CustomOp *);
    Function later[4]; /* of versions above this one: not read */
} CustomOp;

#endif
