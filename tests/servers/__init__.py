"""Real servers, private to one run: started from what the machine offers, and gone when their owner is.

Read in this order:

* `resolve`     which PostgreSQL and which RabbitMQ this machine can offer, as a sum type
* `rundir`, `guard`, `sweep`   one folder per run, and how everything in it ends with the run's owner
* `postgresql`, `rabbitmq`     the launchers, with `private_postgresql()` and `private_rabbitmq()` for the demo and the
                               benchmarks: start, stop, kill, restart, pause
* `servers`     one of each for all processes of a run
* `fixtures`    the same for pytest, also under pytest-xdist; the only module that imports pytest
"""
