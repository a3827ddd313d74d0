"""What `launch.py` and its commands say to `--help`. Plain texts: they need no package."""

HELP = """\
usage: python launch.py [command] [recipe.toml ...] [section.field=value ...]

commands
  train   train a policy (the default; recipe: configs/local.toml)
  eval    play evaluation sets with fixed weights: model.path=DIR   (eval --help)
  synth   make a pool of environments from coding problems: out=DIR   (synth --help)
  sft     make a policy that imitates oracles, or good rollouts: out=DIR    (sft --help)
  bench   measure: bench NAME, such as engine | learner | overlap   (bench --help)
  show    read the rollouts of a run, or list runs: show [DIR] [filter ...]   (show --help)
  report  make DIR/report.html of a run: report DIR          (report --help)
  pool    list, add, replace, remove pools of a run that goes on: --run DIR   (pool --help)
  control pause, resume, save or look at a run that goes on: --run DIR   (control --help)

options
  --help      this text
  --help config [SECTION]   every setting, or those of a section: default and meaning
  --dry-run   write the resolved configuration to the run directory and stop
  --resume DIR   go on with a run from its newest checkpoint; settings change on top

Recipes and overrides merge in the order given; later wins. Examples:
  python launch.py
  python launch.py learner.steps=40 run.dir=runs/short logging.wandb=off
  python launch.py configs/local.toml my_cluster.toml cluster.address=auto
  python launch.py show runs/short reward=0 order=longest
"""

EVAL_HELP = """\
usage: python launch.py eval model.path=DIR [recipe.toml ...] [section.field=value ...]

Plays evaluation sets with the weights in DIR (Hugging Face format) and trains nothing. Pools and sets
are the recipe's (configs/local.toml where none is named). A pool that is in no [eval.sets] is
evaluated on all of its environments. Configurations come from the evaluation split, one in eight, which
training never sees; of pools with split=eval they are any, except those of environments that another
pool trains on. They are the same for every policy: run.seed chooses others.

  eval.samples=K                 episodes of each configuration when sampled (1); greedy has one
  eval.sets.NAME.count=N         configurations of a set of the recipe
  eval.sets.NAME.envs='["a"]'    a set of your own: environment ids, pool/env or env
  eval.sets.NAME.level=L         difficulty handed to the environments; 0 is that of training
  pools.NAME.source=MODULE:ATTR  environments of your own (pools.NAME.trusted=true to run them)
  rollout.max_turns=N and more   --help config has every setting

What it prints, and writes to summary.json, for each set, sampled and greedy, with 95 % intervals over
configurations; episodes that faulted are counted apart:
  avg@k    mean reward
  pass@k   chance that at least one of k samples gets the full reward; unbiased, for k = 1, 2, 4, .. K
  pass^k   chance that all of them do

Examples:
  python launch.py eval model.path=runs/short/checkpoints/step_40/hf
  python launch.py eval model.path=my_policy eval.samples=8 run.dir=runs/my_eval
  python launch.py eval model.path=my_policy my_pools.toml eval.samples=4
"""

SYNTH_HELP = """\
usage: python launch.py synth [recipe.toml ...] [setting=value ...]
       python launch.py synth audit DIR [--solvers FILE|DIR] [--json]

Makes a pool of verified tool-use environments from coding problems. Without a recipe configs/synth.toml
is used: the problems that come along, compiled from their solutions without any model. Everything that is
not ours runs in a sandbox. Finished work is kept: stopped, the same command goes on where it was.

DIR holds pool/{train,validation,test}, train.toml and eval.toml to train and evaluate on it, traces.jsonl
with each task's answer and winning calls, report.html, export/ for other trainers, manifest.json.

`synth audit` looks for wrong references, tasks won by looking only, shown answers and duplicates in such a
directory, in any pool of ours, or in a directory of environments in CodeGym's format.

Examples:
  python launch.py synth                                            into runs/synth, in minutes
  python launch.py synth out=runs/mine problems.paths='["my.jsonl"]'   rows: id, statement, solution, tests
  python launch.py synth problems.format=apps problems.paths='["apps.jsonl"]'
  python launch.py synth llm.enabled=true llm.model=NAME llm.base_url=URL   key: OPENAI_API_KEY
  python launch.py mine.toml runs/synth/train.toml model.path=DIR   what it is for

Exit codes: 0 done, 1 nothing passed or it could not be finished, 2 a mistake here, 130 interrupted.

settings, with their defaults where no recipe is used
"""

SFT_HELP = """\
usage: python launch.py sft [recipe.toml ...] [setting=value ...]
       python launch.py sft --resume DIR

Makes a policy that can be trained further, by imitation. Without a recipe configs/tiny_policy/recipe.toml
is used, which makes the policy that this project ships in about six minutes. What is imitated:

  oracles     environments' own, well at first and then with slips (traces.*). Where demonstrations with
              slips begin, the loss jumps: nobody can foresee a slip
  rollouts    that ended well, of runs or of files (rollouts.paths): rejection sampling, distillation. A
              file is one of a run's rollouts/*.jsonl, or lines with env, messages, tools and reward
  a teacher   which plays training tasks first (rollouts.teacher, rollouts.recipe)

What is kept and what is left out is said before it trains. With checkpoint.every a warm start that was
stopped goes on with --resume; its recipe and its demonstrations are kept in DIR/sft.

Examples:
  python launch.py sft out=runs/my_policy                      the shipped recipe again
  python launch.py sft out=runs/quick traces.count=2000        a poor policy, soon
  python launch.py sft out=runs/mine base=my_model lr=1e-4     a model of yours, trained further
  python launch.py sft out=runs/student base=tiny_policy/policy lr=5e-4 epochs=3 held_out=0.1 \\
      rollouts.paths='["runs/short"]'                          what a run did well
  python launch.py sft out=runs/student rollouts.teacher=my_model rollouts.recipe='["mine.toml"]'
  python launch.py model.path=runs/my_policy                   what it is for

settings, with their defaults where no recipe is used
"""

REPORT_HELP = """\
usage: python launch.py report DIR

Makes DIR/report.html, and its figures as PNG files in DIR/report/, from the files of the run in DIR
alone. A run makes its own when it ends. This makes it again, or makes one of a run that was interrupted
or still plays; it changes nothing else there. The page is one file that needs no network: success
before and after training, reward over steps, lag, who worked when, the ledger, rollouts side by side.

Example:
  python launch.py report runs/short
"""

POOL_HELP = """\
usage: python launch.py pool ACTION --run DIR|URL [--token T] [--json]

Changes the pools of a run while it trains; nothing restarts, and --resume knows them.

  pool list                      every version of a pool that the run had, and where it is
  pool add NAME SOURCE           draw from a pool as well: SOURCE is the path of a .py file or a
                                 directory of them, or module:attribute, as in a recipe
  pool replace NAME SOURCE       the same in place of the version there is, which finishes its groups
  pool remove NAME               draw nothing of it any more; what is on its way is trained on
  pool lift NAME                 draw again what was quarantined because it kept failing

  --weight W       share of tasks, relative to the other pools' weights (1.0)
  --trusted        run its code without a sandbox
  --train ENV ...  train on these environments only
  key=value        any other setting of a pool: is_replayable=false
  --run DIR|URL    the directory of the run, or where it listens (DIR/control.json has it)
  --token T        what a run on another address asks for (of a DIR it is read from control.json)

A module must be importable where the run plays: beside its recipe, or in one of run.imports.
Exit codes: 0 done, 1 the run refused and is as it was, 2 a mistake here, or nothing runs there.

Examples:
  python launch.py pool list --run runs/short
  python launch.py pool add mine my_pool:envs --trusted --weight 2 --run runs/short
  python launch.py pool add made runs/synth/pool/train --run runs/short
  python launch.py pool replace mine my_pool:envs --trusted --run runs/short
"""

CONTROL_HELP = """\
usage: python launch.py control ACTION --run DIR|URL [--token T] [--json]

  control status       where the run is
  control pause        grant nothing new and begin no step; what plays ends
  control resume       go on
  control checkpoint   save between two steps, as soon as possible; waits for it

Examples:
  python launch.py control pause --run runs/short
  python launch.py control checkpoint --run http://127.0.0.1:38381 --json
"""

BENCH_HELP = """\
usage: python launch.py bench NAME [option ...] [recipe.toml ...] [section.field=value ...]

  engine    tokens per CPU second of the embedded engine against generate() of transformers
            --json
  envpool   steps per second of the session pool against bare socket pairs, its bound, and against
            gymnasium, Ray actors, process pools, forking for every step; how it recovers
            --json  --quick  --rounds N  --seconds S  --only A,B
  overlap   a training run as it is against the same one that generates and trains in turn
            (rollout.max_lag=0): seconds a step, tokens a second, lag, reward
            --json  --steps N  --keep DIR  settings
  sync      seconds in which weights of 2 MB, 200 MB and 2 GB get from learner to engine, by file, through
            Ray, and as changes, and for which generation stands still, against copying them in memory
            --json  --sizes 2,200,2000  --dir /dev/shm  --no-stall
  learning  success before against after training, the mean over runs with several seeds
            --json  --seeds 0,1,2  --keep DIR  settings
  cost      CPU time a rollout costs beside the policy, by part of the system, and what starting costs
            --json  --steps N  --keep DIR  settings
  learner   an optimizer step, and its memory, against one on padded batches with transformers; on a
            GPU where there is one
            --json  --model tiny|small|qwen2.5-0.5b|qwen2.5-1.5b|qwen2.5-7b  --dtype float32|bfloat16
  staleness  which correction of off-policy data stands which lag: success after training at exact lags
            --json  --quick  --out DIR  --jobs N  --variants "A;B"  --lags 0,8  --lrs 6e-4  --seeds 0  --updates N
            settings
  curriculum  what each rollout.draw spends on a simulated policy: groups with signal, groups and steps
            until it passes most tasks; half a minute, on one core
            --json  --seeds 0,1,2  --groups N  settings

  --json       also print one JSON object, on the last line
  --steps N    optimizer steps of each run
  --keep DIR   keep the runs in this new directory; else they are removed
  settings     recipes and overrides, as of a run (configs/local.toml where no recipe is named)
  bench NAME --help has the defaults. Nothing else should run on the machine meanwhile.

Examples:
  python launch.py bench engine --json
  python launch.py bench overlap --steps 40 --keep runs/overlap
  python launch.py bench learning --seeds 0,1 learner.steps=80
  python launch.py bench learning rollout.draw=adaptive    beside the same with rollout.draw=uniform
"""
