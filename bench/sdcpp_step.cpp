// One evaluation of a Wan-VACE GGUF file by stable-diffusion.cpp, for bench/wan_gguf.py --sdcpp.
//
//   sdcpp_step MODEL INPUTS OUTPUT FRAMES HEIGHT WIDTH THREADS
//
// INPUTS holds float32 numbers: latents [16, T, H, W], the VACE context [96, T, H, W], text states
// [512, 4096] and one timestep. A line `done SECONDS CPU_SECONDS`, both since the start, is printed
// when the model is loaded, and one for each line on standard input, which asks for an evaluation;
// other lines are the library's. The velocity [16, T, H, W] is then in OUTPUT. The library's command
// line needs a text encoder and an autoencoder besides, so this calls its runner of the transformer.
//
// With the source distribution of stable-diffusion-cpp-python 0.4.7 unpacked, S its folder
// vendor/stable-diffusion.cpp and B a build folder:
//
//   cmake -S $S -B $B -DCMAKE_BUILD_TYPE=Release -DSD_BUILD_EXAMPLES=OFF
//   cmake --build $B
//   g++ -O3 -march=native -std=c++17 -DGGML_MAX_NAME=128 -I$S/src -I$S/include -I$S/ggml/include
//     -I$S/thirdparty bench/sdcpp_step.cpp -o sdcpp_step $B/libstable-diffusion.a
//     $B/ggml/src/libggml.a $B/ggml/src/libggml-cpu.a $B/ggml/src/libggml-base.a
//     -lgomp -lpthread -ldl

#include <chrono>
#include <ctime>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "model.h"
#include "wan.hpp"

namespace {

const auto began = std::chrono::steady_clock::now();

void report() {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - began;
    const double cpu_seconds = static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
    std::cout << "\ndone " << passed.count() << ' ' << cpu_seconds << std::endl;
}

sd::Tensor<float> read(std::ifstream& file, std::vector<int64_t> shape) {
    sd::Tensor<float> tensor(std::move(shape));
    file.read(reinterpret_cast<char*>(tensor.data()), tensor.numel() * sizeof(float));
    return tensor;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 8) {
        std::cerr << "sdcpp_step MODEL INPUTS OUTPUT FRAMES HEIGHT WIDTH THREADS\n";
        return 2;
    }
    const int64_t frames = std::stoll(argv[4]), height = std::stoll(argv[5]);
    const int64_t width = std::stoll(argv[6]);
    const int threads = std::stoi(argv[7]);
    const std::string prefix = "model.diffusion_model";

    std::ifstream inputs(argv[2], std::ios::binary);
    auto latents = read(inputs, {width, height, frames, 16});
    auto vace_context = read(inputs, {width, height, frames, 96});
    auto text = read(inputs, {4096, 512});
    auto timestep = read(inputs, {1});
    if (!inputs) {
        std::cerr << argv[2] << ": too short\n";
        return 1;
    }

    ModelLoader loader;
    if (!loader.init_from_file_and_convert_name(argv[1], prefix + ".")) {
        std::cerr << argv[1] << ": cannot be read\n";
        return 1;
    }
    WAN::WanRunner runner(ggml_backend_cpu_init(), false, loader.get_tensor_storage_map(), prefix,
                          VERSION_WAN2);
    runner.alloc_params_buffer();
    std::map<std::string, ggml_tensor*> tensors;
    runner.get_param_tensors(tensors, prefix);
    if (!loader.load_tensors(tensors, {}, threads)) {
        std::cerr << argv[1] << ": cannot be loaded\n";
        return 1;
    }
    report();

    for (std::string line; std::getline(std::cin, line);) {
        auto velocity = runner.compute(threads, latents, timestep, text, {}, {}, {}, vace_context);
        std::ofstream output(argv[3], std::ios::binary);
        output.write(reinterpret_cast<const char*>(velocity.data()),
                     velocity.numel() * sizeof(float));
        output.close();
        report();
    }
}
