"""What answers are worth: metrics, comparison with `single`, and `astra evaluate`, which runs real strategies.

metrics.py, paired.py   numbers from predictions and labels; pure
cost.py                 bits a token, compression and FPAR of a strategy; pure
answering.py            one rank answers a labelled set with one strategy
run.py                  all strategies, device counts and seeds: as threads of this process, or as one rank of many
results.py              from answers to rows, files and a table
"""
