"""Runs vLLM: `ask.py JOBS ANSWERS` reads the jobs of served.py as JSON and writes prompts and answers as JSON."""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory


def answer(job: dict) -> list[dict]:
    llm = LLM(limit_mm_per_prompt={"image": 2}, **job["engine"])
    found = []
    for output in llm.chat(job["conversations"], SamplingParams(**job["sampling"]), use_tqdm=False):
        tokens, logprobs = output.outputs[0].token_ids, output.outputs[0].logprobs
        chosen = [choices[token].logprob for token, choices in zip(tokens, logprobs)]
        found.append({"prompt": output.prompt_token_ids, "answer": list(tokens), "logprobs": chosen})
    return found


def main(jobs: str, answers: str):
    found = []
    for job in json.loads(Path(jobs).read_text()):
        found.append(answer(job))
        cleanup_dist_env_and_memory()
    Path(answers).write_text(json.dumps(found))


if __name__ == "__main__":  # vLLM's workers import this file
    main(*sys.argv[1:])
