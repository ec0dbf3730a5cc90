"""Sweeps: one scenario at every point of a matrix, each point measured once and kept.

    sweep.yaml --load--> Sweep of cells --plan--> runs, batch by batch --run_sweep--> folder of runs --> results.csv
    (base, matrix)       (a scenario each)        (least restarts)     (resumes)      (merge: of shards)

A module a step: `schema`, `paths`, `cells`, `order`, `estimate` are pure, `folder` and `merge` read and write files,
`session` makes devices, `running` is the loop, `command` the command line.
"""
