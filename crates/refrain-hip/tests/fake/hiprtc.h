// hipRTC, by the system's C++ compiler and kx_sim.h.
#pragma once
#include "modules.h"

struct Program {
    std::string name, text, log, image;
    std::vector<std::pair<std::string, std::string>> headers;
};

API int hiprtcVersion(int* major, int* minor) { return *major = 9, *minor = 0; }
API const char* hiprtcGetErrorString(int status) { return status == 6 ? "HIPRTC_ERROR_COMPILATION" : "HIPRTC_ERROR"; }
API int hiprtcCreateProgram(Program** program, const char* text, const char* name, int count, const char** texts,
                            const char** names) {
    *program = new Program{name, text, "", "", {}};
    for (int i = 0; i < count; i++) (*program)->headers.push_back({names[i], texts[i]});
    return 0;
}
API int hiprtcCompileProgram(Program* program, int count, const char** options) {
    char folder[] = "/tmp/refrain-fake-hip-XXXXXX";
    if (!mkdtemp(folder)) return 11;
    const std::string at = std::string(folder) + "/";
    const auto write = [&](const std::string& name, const std::string& text) { std::ofstream(at + name) << text; };
    write("source.cu", program->text);
    for (const auto& [name, text] : program->headers) write(name, text);
    std::string command = "cd " + at + " && c++ -std=c++17 -O2 -shared -fPIC -fno-strict-aliasing -ffp-contract=off -w";
    command += " -DKX_SIM -DKX_WAVE=64 -I. -x c++ source.cu -o image.so";
    bool for_this_device = false;
    for (int i = 0; i < count; i++) {
        const std::string option = options[i];
        if (option.rfind("-D", 0) == 0) command += " '" + option + "'";
        if (option == "--offload-arch=gfx906") for_this_device = true;
    }
    const int status = system((command + " 2> log").c_str());
    const auto read = [&](const std::string& name) {
        std::ifstream file(at + name, std::ios::binary);
        return std::string(std::istreambuf_iterator<char>(file), {});
    };
    program->log = read("log");
    const std::string payload = read("image.so");
    std::filesystem::remove_all(folder);
    if (status != 0 || !for_this_device) return 6;
    std::string& image = program->image;
    image.assign(HEADER, '\0');
    memcpy(&image[0], "\177ELF\2\1", 6);
    const uint16_t machine = 224;
    const uint32_t flags = 0x52f;
    const uint64_t bytes = payload.size();
    memcpy(&image[18], &machine, 2);
    memcpy(&image[48], &flags, 4);
    image.append(MARK, sizeof MARK).append((const char*)&bytes, 8).append(payload);
    return 0;
}
API int hiprtcGetProgramLogSize(Program* program, size_t* size) { return *size = program->log.size() + 1, 0; }
API int hiprtcGetProgramLog(Program* program, char* log) { return strcpy(log, program->log.c_str()), 0; }
API int hiprtcGetCodeSize(Program* program, size_t* size) { return *size = program->image.size(), 0; }
API int hiprtcGetCode(Program* program, char* code) { return memcpy(code, program->image.data(), program->image.size()), 0; }
API int hiprtcDestroyProgram(Program** program) { return delete *program, *program = nullptr, 0; }
