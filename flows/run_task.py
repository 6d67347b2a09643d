"""Run a task to its end; used by the deployment `run-task/default` in `prefect.yaml`."""

from prefect_dstack.flows.run_task import run_task

if __name__ == "__main__":
    run_task.serve(name="default")
