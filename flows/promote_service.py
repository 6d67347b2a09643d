"""Promote a canary that waits for a person; used by `promote-service/default` in `prefect.yaml`."""

from prefect_dstack import promote_service

if __name__ == "__main__":
    promote_service.serve(name="default")
