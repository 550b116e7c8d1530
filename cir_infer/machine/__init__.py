"""What this machine is and what of cir-infer would run on it.

`cir-bench doctor`, or `python3 -m cir_infer.machine` where no command is installed. It needs Python and this
package alone: whatever else there is is asked in processes of their own, which may fail, crash or hang.
"""
