#!/bin/sh
# Makes the rivals' environments from the package index, beside the torch of a Python that has one
# (by default the project's): FOLDER/peft, with PEFT and this transformers; FOLDER/adapters, with
# adapters and the older transformers that it wants.
#
#     benchmarks/environments.sh FOLDER [PYTHON]
set -eu
folder=$1
python=${2:-.venv/bin/python}
peft=0.21.2
adapters=1.3.0
for name in peft adapters; do
    test -x "$folder/$name/bin/python" || "$python" -m venv "$folder/$name"
done
site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
install() { "$folder/$1/bin/python" -m pip install -q --disable-pip-version-check --no-deps $2; }
torch=$("$python" -c 'import torch; print(torch.__path__[0].rpartition("/")[0])')
for name in peft adapters; do
    echo "$torch" > "$(site "$folder/$name/bin/python")/torch.pth"
done
install peft "peft==$peft"
install adapters "adapters==$adapters transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2
    requests certifi charset-normalizer idna urllib3"
for name in peft adapters; do
    "$folder/$name/bin/python" -c "import $name, torch, transformers
print('$name', $name.__version__, 'transformers', transformers.__version__, 'torch', torch.__version__)"
done
