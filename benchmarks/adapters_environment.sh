#!/bin/sh
# Makes the environment of `bench_serving.py --adapters-python`: adapters 1.3 and the transformers
# that it wants, beside the torch of a Python that has one (by default the project's).
#
#     benchmarks/adapters_environment.sh FOLDER [PYTHON]
set -eu
folder=$1
python=${2:-.venv/bin/python}
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install -q --disable-pip-version-check --no-deps \
    adapters==1.3.0 transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2 \
    requests certifi charset-normalizer idna urllib3
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import torch; print(torch.__path__[0].rpartition("/")[0])' > "$site/torch.pth"
"$folder/bin/python" -c 'import adapters, torch; print("adapters", adapters.__version__, "torch", torch.__version__)'
