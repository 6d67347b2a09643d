"""Go back to an earlier revision of a service; used by `rollback-service/default` in `prefect.yaml`."""

from prefect_dstack import rollback_service

if __name__ == "__main__":
    rollback_service.serve(name="default")
