"""Running a job's program: one worker actor and one child process per attempt.

Owns everything between "the head wants job 7 to run on this device" and "it ended like this": the executor
interface (`interface`), its Ray implementation (`ray_executor`, `actor`), the child process (`supervisor`,
`child`) and what the program sees (`job`); and for the commands of scripts, the job that their processes borrow
(`lending`, `current`) and their Python (`environment`). Decides nothing, and holds neither Redis nor users'
credentials.
"""

from __future__ import annotations
