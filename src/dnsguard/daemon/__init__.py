"""What the daemon is made of beside its rooms: `service.py` puts all of it in order.

assembly        what the configuration means to each room
policies        the policy in force, and how another one takes its place
reloads         who asks for a reload, and whose it is
restore, owed   what an earlier process left, taken up again, and what it had yet to do
beside          the eBPF line: opened, on every link, vouched for
background      work that goes on until the stop, contained
supervision     what systemd is told, and what it keeps over a restart
backoff         what one process tells the next: starts that failed, so that it waits, and how it was ended
drops, kernel_events, seen, clock       what the kernel did, told, counted, and learned from; steps of the wall clock
rooms           all of them, for those that look at all
endpoints       the control socket, metrics and health
reports, figures, gauges, why, kernel_counters, readiness       what these tell
early, cleanup  without a daemon: every link closed, every trace removed
lock, runtime, process, whole   the only one; its folder; its interpreter; small files
"""
